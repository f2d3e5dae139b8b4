"""What one rank decides for all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from cdp_torchrec.config import ConfigError

_Shared = TypeVar("_Shared")


@dataclass(frozen=True)
class _Failure:
    """What rank 0 tells the others in place of a result."""

    text: str
    is_mistake: bool
    """The user's."""


def from_rank_zero(what: str, make: Callable[[], _Shared]) -> _Shared:
    """What rank 0 makes or reads, on all ranks; collective.

    Args:
        what: its name, for errors.
        make: called on rank 0 only.

    Raises:
        ConfigError: rank 0 raised it; on all ranks.
        RuntimeError: on the other ranks, when anything else went wrong on rank 0, which raises
            what it was.
    """
    shared: list[_Shared | _Failure | None] = [None]
    raised: Exception | None = None
    if dist.get_rank() == 0:
        try:
            shared[0] = make()
        except Exception as error:  # whatever it is: the other ranks are waiting
            raised = error
            shared[0] = _Failure(str(error), isinstance(error, ConfigError))
    dist.broadcast_object_list(shared)
    if raised is not None:
        raise raised
    (result,) = shared
    if isinstance(result, _Failure):
        if result.is_mistake:
            raise ConfigError(result.text)
        raise RuntimeError(f"rank 0 could not make the {what}: {result.text}")
    return result  # pyrefly: ignore[bad-return]
