"""Optimizers for embedding tables whose gradients arrive dense.

FBGEMM fuses an optimizer into the backward pass of a table, but has no Adam on CPU and ignores
the optimizer of a data-parallel table. These two do the same mathematics on the gradient that
such tables expose. Their state has FBGEMM's names and is sharded like its table, so a checkpoint
does not depend on where a table was updated.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torchrec.optim.keyed import KeyedOptimizer

from cdp_torchrec.model.sparse_arch import table_of


class LazyAdam(KeyedOptimizer):
    """Adam (arXiv 1412.6980, algorithm 1) that updates only rows with a gradient.

    As FBGEMM's on a GPU it adds epsilon to the corrected root of the second moment;
    torch.optim.SparseAdam adds it to the uncorrected one, which is smaller in the first steps.
    """

    def __init__(
        self,
        tables: Mapping[str, tuple[nn.Parameter, Tensor | ShardedTensor]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        replicas: dist.ProcessGroup | None = None,
    ) -> None:
        """Create zero state.

        Args:
            tables: by parameter name: the local part, and the table as the state dict has it.
            lr: learning rate.
            betas: decay of the first and second moment.
            eps: added to the corrected root of the second moment.
            replicas: ranks that hold the same parts, whose gradients are averaged.
        """
        self._replicas = replicas
        self._sharded = [
            local for local, table in tables.values() if isinstance(table, ShardedTensor)
        ]
        self._betas = betas
        self._eps = eps
        self._step = 0
        self._moments = {
            local: (torch.zeros_like(local.data), torch.zeros_like(local.data))
            for local, _ in tables.values()
        }
        state = {
            local: {
                f"{table_of(name)}.momentum{number}": _sharded_like(table, local, moment)
                for number, moment in enumerate(self._moments[local], 1)
            }
            for name, (local, table) in tables.items()
        }
        super().__init__(
            {name: local for name, (local, _) in tables.items()},
            state,
            [{"params": [local for local, _ in tables.values()], "lr": lr}],
        )

    def set_optimizer_step(self, step: int) -> None:
        """Number of steps done so far, for the bias correction."""
        self._step = step

    @torch.no_grad()
    # TorchRec's own subclasses of KeyedOptimizer return None, too.
    def step(self, closure: Any = None) -> None:  # pyrefly: ignore[bad-override]
        """One update of the rows with a gradient."""
        self._step += 1
        if self._replicas is not None:
            self._average_gradients(self._replicas)
        beta1, beta2 = self._betas
        rate_correction = 1 / (1 - beta1**self._step)
        root_correction = (1 - beta2**self._step) ** -0.5
        for group in self.param_groups:
            for local in group["params"]:
                if local.grad is None:
                    continue
                rows = local.grad.ne(0).any(dim=1).nonzero().squeeze(1)
                gradient = local.grad[rows]
                first, second = self._moments[local]
                # Unlike an in-place lerp on the whole table, this touches the rows only.
                m = first[rows].lerp_(gradient, 1 - beta1)
                v = second[rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                first[rows], second[rows] = m, v
                root = v.sqrt().mul_(root_correction).add_(self._eps)
                local.data.index_add_(0, rows, m / root, alpha=-group["lr"] * rate_correction)

    def _average_gradients(self, replicas: dist.ProcessGroup) -> None:
        """From the mean of each group of ranks to that of all ranks."""
        for local in self._sharded:  # those of data-parallel tables are the mean of all ranks
            if local.grad is None:
                local.grad = torch.zeros_like(local)  # another replica may have one
            dist.all_reduce(local.grad, group=replicas)
            local.grad.div_(replicas.size())


class RowWiseAdagrad(KeyedOptimizer):
    """Row-wise Adagrad of data-parallel tables: one second moment per row."""

    def __init__(
        self, tables: Mapping[str, tuple[nn.Parameter, Tensor]], *, lr: float, eps: float
    ) -> None:
        """Create zero state.

        Args:
            tables: by parameter name: the local copy, and the table as the state dict has it.
            lr: learning rate.
            eps: added to the root of the accumulator.
        """
        self._eps = eps
        state = {
            local: {f"{table_of(name)}.momentum1": table.new_zeros(table.shape[0])}
            for name, (local, table) in tables.items()
        }
        super().__init__(
            {name: local for name, (local, _) in tables.items()},
            state,
            [{"params": [local for local, _ in tables.values()], "lr": lr}],
        )

    @torch.no_grad()
    # TorchRec's own subclasses of KeyedOptimizer return None, too.
    def step(self, closure: Any = None) -> None:  # pyrefly: ignore[bad-override]
        """One update; rows without a gradient stay as they are."""
        for group in self.param_groups:
            for local in group["params"]:
                if local.grad is None:
                    continue
                (accumulator,) = self.state[local].values()
                accumulator += local.grad.square().mean(dim=1)
                scale = accumulator.sqrt().add_(self._eps).unsqueeze(1)
                local.data.addcdiv_(local.grad, scale, value=-group["lr"])


def _sharded_like(
    table: Tensor | ShardedTensor, local: Tensor, moment: Tensor
) -> Tensor | ShardedTensor:
    """A moment of the local part of a table as a state dict has it: split as its table.

    Args:
        table: as the state dict has it.
        local: this rank's part. A table that is split by columns may have several shards here;
            they lie one below the other.
        moment: shaped as `local`; the result shares its memory.
    """
    if not isinstance(table, ShardedTensor):
        return moment
    shards = []
    for shard in table.local_shards():
        rows, width = shard.tensor.shape
        offset = shard.tensor.storage_offset() - local.storage_offset()
        assert shard.tensor.untyped_storage().data_ptr() == local.untyped_storage().data_ptr()
        assert width == local.shape[1] and offset % width == 0
        part = moment.narrow(0, offset // width, rows)
        shards.append(Shard(part, deepcopy(shard.metadata)))
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        shards, deepcopy(table.metadata()), process_group=table._process_group
    )
