"""What one rank finds out for all of them, and what each one does for the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from cdp_torchrec.user_error import UserError

_Shared = TypeVar("_Shared")


@dataclass(frozen=True)
class _Failure:
    """An error of a rank, on its way to the others."""

    text: str
    kind: type[UserError] | None

    @classmethod
    def of(cls, error: Exception) -> "_Failure":
        return cls(str(error), type(error) if isinstance(error, UserError) else None)


def from_rank_zero(make: Callable[[], _Shared], *, purpose: str) -> _Shared:
    """What rank 0 makes or reads, on all ranks, so that all take the same way; collective.

    Args:
        make: called on rank 0 only; what it returns is pickled.
        purpose: what it does, for the error of the other ranks, such as "read the directory".

    Raises:
        UserError: what rank 0 raised; on all ranks.
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
            shared[0] = _Failure.of(error)
    dist.broadcast_object_list(shared)
    if raised is not None:
        raise raised
    (found,) = shared
    if isinstance(found, _Failure):
        if found.kind is not None:
            raise found.kind(found.text)
        raise RuntimeError(f"rank 0 could not {purpose}: {found.text}")
    return found  # pyrefly: ignore[bad-return]


def on_all_ranks(
    step: Callable[[], _Shared], *, group: dist.ProcessGroup | None = None
) -> list[_Shared]:
    """What each rank makes of a step, on all ranks; an error of one is an error of all; collective.

    Args:
        step: what this rank does; what it returns is pickled.
        group: all ranks; without it, the one that they joined first.

    Raises:
        UserError: what a rank raised; on all ranks.
        RuntimeError: anything else that went wrong on a rank; on all ranks.
    """
    own: _Shared | _Failure
    try:
        own = step()
    except Exception as error:  # whatever it is: the other ranks are waiting
        own = _Failure.of(error)
    gathered: list[_Shared | _Failure] = [own] * dist.get_world_size()
    dist.all_gather_object(gathered, own, group=group)
    found: list[_Shared] = []
    for rank, part in enumerate(gathered):
        if isinstance(part, _Failure):
            if part.kind is not None:
                raise part.kind(part.text)
            raise RuntimeError(f"rank {rank}: {part.text}")
        found.append(part)
    return found
