"""Outputs of past items, kept between requests: the memory of MARM (2411.09425)."""

# n behaviours, K layers whose outputs are kept, A width

from collections.abc import Sequence

import torch
from torch import Tensor


class OutputCache:
    """Outputs by user, item, time of the behaviour and layer, of one checkpoint.

    The paper's key has no time. An item that a user came back to has another output each time,
    since more happened before, and training reads each of them.

    An output is written when the behaviour happens, as of its own time and from what is kept of the
    behaviours before it: not when the item was shown, after which the user did other things. Where
    several behaviours share user, item and time, the last one written counts.
    """

    def __init__(self, *, checkpoint: str) -> None:
        """An empty cache.

        Args:
            checkpoint: a digest of the parameters and tables that make the outputs, such as
                the SHA-256 of a checkpoint's `checkpoint.json`.
        """
        self.checkpoint = checkpoint
        self._outputs: dict[tuple[int, int, int], Tensor] = {}
        self._nothing: Tensor | None = None
        """Outputs of no behaviour, [0, K, A], as soon as a write has told K and A."""

    def __len__(self) -> int:
        """Behaviours whose outputs are kept."""
        return len(self._outputs)

    def write(
        self,
        outputs: Sequence[Tensor],
        *,
        user: int,
        items: Sequence[int],
        times: Sequence[int],
        checkpoint: str,
    ) -> None:
        """Keep the outputs of some behaviours.

        Args:
            outputs: of each layer, [n, A].
            user: whose behaviours.
            items: codes of their items, [n].
            times: of the behaviours, in milliseconds, [n].
            checkpoint: digest of the checkpoint that made them.

        Raises:
            ValueError: the cache is of another checkpoint.
        """
        self._check(checkpoint)
        by_behaviour = torch.stack(list(outputs), dim=1).detach()  # [n, K, A]
        self._nothing = by_behaviour[:0].clone()
        for item, time, output in zip(items, times, by_behaviour, strict=True):
            self._outputs[user, item, time] = output.clone()

    def read(
        self, *, user: int, items: Sequence[int], times: Sequence[int], checkpoint: str
    ) -> tuple[Tensor, ...]:
        """The outputs of some behaviours, [n, A] for each layer; arguments as in write.

        Of a user without behaviours they are empty.

        Raises:
            ValueError: the cache is of another checkpoint, lacks a behaviour, or was never written.
        """
        self._check(checkpoint)
        if self._nothing is None:
            raise ValueError(
                "nothing was written into the cache: write what MarmInterest.outputs gives for "
                "users' histories, though it may be empty"
            )
        found = []
        for item, time in zip(items, times, strict=True):
            output = self._outputs.get((user, item, time))
            if output is None:
                raise ValueError(
                    f"no output of user {user}, item {item} at {time} in the cache: write what "
                    "MarmInterest.outputs gives for the user's history"
                )
            found.append(output)
        return (torch.stack(found) if found else self._nothing).unbind(1)

    def _check(self, checkpoint: str) -> None:
        if checkpoint != self.checkpoint:
            raise ValueError(
                f"the cache is of checkpoint {self.checkpoint}, not of {checkpoint}: outputs of "
                "other parameters are no keys of this model; fill a new cache with what "
                "MarmInterest.outputs gives for each user's history"
            )
