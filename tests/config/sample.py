"""A small configuration with every kind of key, for the tests of configuration."""

from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cdp_torchrec.config import Config, ConfigConflicts, ConfigError, load_config


class Cdp(Config):
    """Diffusion on the pooled history."""

    kind: Literal["cdp"] = "cdp"
    num_train_timesteps: PositiveInt = 100
    """Length T of the noise schedule (paper: 100)."""
    noise_loss_weight: float = Field(1.0, ge=0, le=10)
    """Weight of the noise loss."""


class Twin(Config):
    """Attention over the retrieved history."""

    kind: Literal["twin"] = "twin"
    num_heads: PositiveInt = 2
    """Attention heads."""


class Model(Config):
    """The ranking model."""

    interest: Annotated[Cdp | Twin, Field(discriminator="kind")] = Cdp()
    """How the history becomes an interest vector."""
    over_arch_layer_sizes: tuple[PositiveInt, ...] = (64, 32)
    """Widths of the final MLP."""


class Optimizer(Config):
    """One optimizer."""

    lr: PositiveFloat = 1e-3
    """Learning rate per step."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate changes over steps."""


class Data(Config):
    """What is read."""

    dir: Path
    """Dataset directory."""
    column_weights: dict[str, float] = {}
    """Weight of each feature, by column."""


class Trainer(Config):
    """The training loop."""

    global_batch_size: PositiveInt = 4096
    """Impressions per step on all ranks."""
    num_ranks: PositiveInt = 4
    """Ranks that share a batch."""
    compile: bool = False
    """Whether to compile the dense part."""
    max_steps: PositiveInt | None = None
    """Steps to train; not set: the whole split."""
    notes: str = ""
    """Free text for the log."""


class Experiment(Config):
    """Sections as in the real thing."""

    data: Data
    """Dataset."""
    model: Model = Model()
    """Model."""
    sparse: Optimizer = Optimizer(lr=5e-4)
    """Optimizer of tables."""
    dense: Optimizer = Optimizer(lr=2.5e-4)
    """Optimizer of the rest."""
    trainer: Trainer = Trainer()
    """Loop."""
    seed: NonNegativeInt = 0
    """Seed of every draw."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        conflicts = []
        if self.trainer.global_batch_size % self.trainer.num_ranks:
            multiple = f"must be a multiple of trainer.num_ranks = {self.trainer.num_ranks}"
            conflicts.append(("trainer.global_batch_size", multiple))
        if self.trainer.compile and self.model.interest.kind == "twin":
            conflicts.append(("trainer.compile", "must be false with model.interest.kind = 'twin'"))
        if conflicts:
            raise ConfigConflicts(conflicts)
        return self


def load(*arguments: str) -> Experiment:
    return load_config(Experiment, ["data.dir=log", *arguments])


def layer(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


def message(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Experiment, arguments)
    return str(caught.value)


def lines(*arguments: str) -> list[str]:
    """The mistakes, one a line, of an otherwise complete configuration."""
    header, *found = message("data.dir=log", *arguments).split("\n  ")
    assert header == "bad config"
    return found
