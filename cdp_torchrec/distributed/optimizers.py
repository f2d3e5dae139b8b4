"""Separate optimizers for sparse parameters (tables) and dense parameters (all others)."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad as InBackwardRowWiseAdagrad

from cdp_torchrec.config import Config
from cdp_torchrec.distributed.row_optimizers import LazyAdam, RowWiseAdagrad
from cdp_torchrec.model.sparse_arch import is_table

Beta = Annotated[float, Field(ge=0, lt=1)]


class ScheduleConfig(Config):
    """Learning rate over time, as a factor of the optimizer's lr."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up: constant, or a decay to final_factor at decay_steps."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the factor rises linearly from 0 to 1."""
    decay_steps: PositiveInt | None = None
    """Step at which a decay ends; without it, trainer.max_steps."""
    final_factor: NonNegativeFloat = 0.0
    """Factor at the end of a decay."""

    def factor(self, step: int, max_steps: int) -> float:
        """Factor of the learning rate for a step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        end = self.decay_steps or max_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, end - self.warmup_steps))
        shape = 1 - progress if self.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.final_factor + (1 - self.final_factor) * shape


class SparseOptimizerConfig(Config):
    """Optimizer of the embedding tables."""

    kind: Literal["adam", "rowwise_adagrad"] = "adam"
    """adam: the paper's; fused into the backward pass on CUDA, over touched rows on CPU, where
    it costs a dense gradient. rowwise_adagrad: fused everywhere, the fast choice on CPU."""
    lr: PositiveFloat = 5e-4
    """Learning rate; 5e-4 in the paper."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Adam's decays; not used by rowwise_adagrad."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over time."""


class DenseOptimizerConfig(Config):
    """Optimizer of everything else: Adam."""

    lr: PositiveFloat = 2.5e-4
    """Learning rate; 2.5e-4 in the paper."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Adam's decays."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (AdamW)."""
    max_gradient_norm: PositiveFloat | None = None
    """Clip the norm of all dense gradients together to this value."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over time."""


class OptimizerConfig(Config):
    """Sparse and dense optimizer."""

    sparse: SparseOptimizerConfig = SparseOptimizerConfig()
    """For the embedding tables."""
    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    """For all other parameters."""


def needs_dense_gradients(config: SparseOptimizerConfig, device: torch.device) -> bool:
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
        kwargs = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
        apply_optimizer_in_backward(torch.optim.Adam, tables.parameters(), kwargs)
    else:
        kwargs = {"lr": config.lr, "eps": config.eps}
        apply_optimizer_in_backward(InBackwardRowWiseAdagrad, tables.parameters(), kwargs)


class ScheduledOptimizer(CombinedOptimizer):
    """Sparse and dense optimizer with a learning rate schedule each."""

    def __init__(
        self, model: DistributedModelParallel, config: OptimizerConfig, *, max_steps: int
    ) -> None:
        """Collect the optimizers of a sharded model.

        Args:
            model: the sharded model.
            config: both optimizers.
            max_steps: steps of the whole training, for the schedules.
        """
        self._config = config
        self._max_steps = max_steps
        self._sparse = sparse_optimizers(model, config.sparse)
        dense = dict(model.named_parameters())
        dense = {name: p for name, p in dense.items() if not is_table(name)}
        self._dense: KeyedOptimizer = KeyedOptimizerWrapper(
            dense,
            lambda parameters: torch.optim.AdamW(
                parameters,
                lr=0.0,
                betas=config.dense.betas,
                eps=config.dense.eps,
                weight_decay=config.dense.weight_decay,
                fused=True,
            ),
        )
        # Adam creates its state in the first step, but a checkpoint is loaded into existing state:
        # a step of learning rate 0 creates it, and is then forgotten.
        self._dense.init_state()
        self._dense.zero_grad(set_to_none=True)
        for parameter in dense.values():
            for value in self._dense.state[parameter].values():
                value.zero_()
        clipped = self._dense
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
    model: DistributedModelParallel, config: SparseOptimizerConfig
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
        optimizers.append(LazyAdam(exposed, lr=config.lr, betas=config.betas, eps=config.eps))
    elif exposed:
        optimizers.append(RowWiseAdagrad(exposed, lr=config.lr, eps=config.eps))
    return optimizers
