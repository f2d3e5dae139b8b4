"""Whether a training has diverged: what it logs and what it saves are numbers."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from cdp_torchrec.distributed.rank_zero import on_all_ranks
from cdp_torchrec.user_error import UserError

_WHAT_HELPS = (
    "lower the learning rates (optimizer.sparse.lr, optimizer.dense.lr) or clip dense gradients "
    "(optimizer.dense.max_gradient_norm)"
)


class NonFiniteError(UserError, RuntimeError):
    """The loss or a weight became infinite or not a number."""


def check_loss(step: int, losses: Mapping[str, float]) -> None:
    """Whether the loss of a step is a number.

    Args:
        step: steps done.
        losses: "loss" and its parts.

    Raises:
        NonFiniteError: it is not.
    """
    if not math.isfinite(losses["loss"]):
        raise NonFiniteError(f"step {step}: the loss is {losses['loss']} ({losses}); {_WHAT_HELPS}")


def check_weights(step: int, weights: Mapping[str, Tensor | ShardedTensor]) -> None:
    """Whether all weights are numbers: the last update comes after the last loss; collective.

    Args:
        step: steps done.
        weights: the model's state by name; each rank looks at its shards.

    Raises:
        NonFiniteError: some are not; names them.
    """
    found = on_all_ranks(lambda: [name for name, tensor in weights.items() if _diverged(tensor)])
    names = sorted({name for of_rank in found for name in of_rank})
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise NonFiniteError(
            f"step {step}: its update left weights that are no numbers, so it is not saved: "
            f"{', '.join(names[:3])}{more}; {_WHAT_HELPS}"
        )


def _diverged(tensor: Tensor | ShardedTensor) -> bool:
    # The extremes of what has a NaN are NaN, and finding them needs no memory.
    return any(
        not torch.isfinite(torch.stack(torch.aminmax(shard))).all()
        for shard in _shards(tensor)
        if shard.is_floating_point() and shard.numel()
    )


def _shards(tensor: Tensor | ShardedTensor) -> Iterator[Tensor]:
    if isinstance(tensor, ShardedTensor):
        yield from (shard.tensor for shard in tensor.local_shards())
    else:
        yield tensor
