"""Settings of the optimizers of sparse parameters (tables) and dense parameters (all others)."""

import math
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from cdp_torchrec.config import MAY_CHANGE, Config, ConfigConflicts, only_if

Patience = Annotated[float, Field(ge=1)]
"""Seconds; in less than one, ranks that are well have no time to answer."""


class RanksConfig(Config):
    """How long the ranks of a job wait for one another."""

    silence_limit_s: Annotated[Patience, MAY_CHANGE] = 60.0
    """Seconds without a sign of life after which a rank counts as lost and the job ends, or is
    restarted: the process is stopped, or its machine is gone. Computing and waiting are no
    silence."""
    collective_timeout_s: Annotated[Patience, MAY_CHANGE] = 300.0
    """Seconds after which a collective that some rank never reached is an error, though all ranks
    live; longer than a rank may take for what the others do not do."""


Beta = Annotated[float, Field(ge=0, lt=1)]
_DECAYS = only_if(kind=("linear", "cosine"))


class ScheduleConfig(Config):
    """Learning rate over time, as a factor of the optimizer's lr."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up: constant, or a decay to final_factor."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the factor rises linearly from 0 to 1; fewer than decay_steps."""
    decay_steps: Annotated[PositiveInt | None, _DECAYS] = None
    """Step at which a decay ends; without it, the last step of the training."""
    final_factor: Annotated[float, Field(ge=0, le=1), _DECAYS] = 0.0
    """Factor at the end of a decay."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.decay_steps is not None and self.warmup_steps >= self.decay_steps:
            raise ConfigConflicts(
                [
                    (
                        "decay_steps",
                        f"more than the {self.warmup_steps} of warmup_steps beside it: the decay "
                        "begins behind the warm-up",
                    )
                ]
            )
        return self

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
    betas: Annotated[tuple[Beta, Beta], only_if(kind="adam")] = (0.9, 0.999)
    """Adam's decays."""
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
