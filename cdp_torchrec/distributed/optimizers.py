"""Separate optimizers for sparse parameters (tables) and dense parameters (all others)."""

from typing import Protocol

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer
from torchrec.optim.optimizers import Adam as InBackwardAdam
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad as InBackwardRowWiseAdagrad

from cdp_torchrec.distributed.config import OptimizerConfig, SparseOptimizerConfig
from cdp_torchrec.distributed.fused_adamw import FusedAdamW
from cdp_torchrec.distributed.row_optimizers import LazyAdam, RowWiseAdagrad
from cdp_torchrec.model.sparse_arch import is_table


class TableOptimizer(Protocol):
    """What a plan depends on of the optimizer of tables."""

    @property
    def kind(self) -> str:
        """Its name: adam, rowwise_adagrad; of models from outside also adagrad, sgd."""
        ...


def needs_dense_gradients(config: TableOptimizer, device: torch.device) -> bool:
    """Whether tables need gradients instead of an optimizer in their backward pass."""
    return config.kind == "adam" and device.type == "cpu"


def apply_sparse_optimizer(
    tables: nn.Module, config: SparseOptimizerConfig, device: torch.device
) -> None:
    """Fuse the sparse optimizer into the backward pass of all tables, where the device can.

    Must happen before planning: the planner sizes the optimizer's state.
    """
    if needs_dense_gradients(config, device):
        return
    if config.kind == "adam":
        # FBGEMM's names: torch.optim.Adam, which TorchRec also takes, would want `betas`.
        beta1, beta2 = config.betas
        kwargs = {"lr": config.lr, "beta1": beta1, "beta2": beta2, "eps": config.eps}
        apply_optimizer_in_backward(InBackwardAdam, tables.parameters(), kwargs)
    else:
        kwargs = {"lr": config.lr, "eps": config.eps}
        apply_optimizer_in_backward(InBackwardRowWiseAdagrad, tables.parameters(), kwargs)


class ScheduledOptimizer(CombinedOptimizer):
    """Sparse and dense optimizer with a learning rate schedule each."""

    def __init__(
        self,
        model: DistributedModelParallel,
        config: OptimizerConfig,
        *,
        max_steps: int,
        replicas: ProcessGroup | None = None,
    ) -> None:
        """Collect the optimizers of a sharded model.

        Args:
            model: the sharded model.
            config: both optimizers.
            max_steps: steps of the whole training, for the schedules.
            replicas: ranks that hold the same shards of the tables as this one, if there are any.
        """
        self._config = config
        self._max_steps = max_steps
        self._sparse = sparse_optimizers(model, config.sparse, replicas)
        dense = dict(model.named_parameters())
        dense = {name: p for name, p in dense.items() if not is_table(name)}
        self._dense = FusedAdamW(
            dense,
            betas=config.dense.betas,
            eps=config.dense.eps,
            weight_decay=config.dense.weight_decay,
        )
        clipped: KeyedOptimizer = self._dense
        if config.dense.max_gradient_norm is not None:
            clipped = GradientClippingOptimizer(
                self._dense,
                clipping=GradientClipping.NORM,
                max_gradient=config.dense.max_gradient_norm,
            )
        super().__init__(
            [*(("sparse", optimizer) for optimizer in self._sparse), ("dense", clipped)]
        )

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Learning rates of a step, counted from 0; returns them by optimizer."""
        sparse, dense = self._config.sparse, self._config.dense
        rates = {
            "sparse": sparse.lr * sparse.schedule.factor(step, self._max_steps),
            "dense": dense.lr * dense.schedule.factor(step, self._max_steps),
        }
        for optimizer in self._sparse:
            for group in optimizer.param_groups:
                group["lr"] = rates["sparse"]  # pyrefly: ignore[unsupported-operation]
        for group in self._dense.param_groups:
            group["lr"] = rates["dense"]  # pyrefly: ignore[unsupported-operation]
        return rates


def sparse_optimizers(
    model: DistributedModelParallel,
    config: SparseOptimizerConfig,
    replicas: ProcessGroup | None = None,
) -> list[KeyedOptimizer]:
    """The fused optimizer, and one for the tables that expose their gradients."""
    in_state = model.state_dict()
    exposed = {
        name: (parameter, in_state[name])
        for name, parameter in model.named_parameters()
        if is_table(name) and parameter.numel()
    }
    if not needs_dense_gradients(config, model.device):
        # Sharded tables are updated in the backward pass, data-parallel ones are not.
        exposed = {n: t for n, t in exposed.items() if not isinstance(t[1], ShardedTensor)}
    optimizers: list[KeyedOptimizer] = [model.fused_optimizer]
    if exposed and config.kind == "adam":
        betas, eps = config.betas, config.eps
        adam = LazyAdam(exposed, lr=config.lr, betas=betas, eps=eps, replicas=replicas)
        optimizers.append(adam)
    elif exposed:
        optimizers.append(RowWiseAdagrad(exposed, lr=config.lr, eps=config.eps))
    return optimizers
