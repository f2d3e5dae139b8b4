"""Inputs of interest modules, and the configurations that the project ships."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cdp_torchrec.config import Config, load_config
from cdp_torchrec.interest import (
    GatedPool,
    InterestConfig,
    InterestDims,
    InterestInput,
    InterestModule,
    build_interest,
)

CONFIGS = Path(__file__).parents[2] / "configs"
DIMS = InterestDims(user=6, query=10, item=8, item_attributes=5, context=7, scene=3)

MakeInputs = Callable[..., InterestInput]
LoadInterest = Callable[..., InterestConfig]
MakeModule = Callable[..., InterestModule]


class _Model(Config):
    interest: InterestConfig


class _Experiment(Config):
    model: _Model


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def dims() -> InterestDims:
    return DIMS


@pytest.fixture
def load_interest() -> LoadInterest:
    """From layer names such as "interest/cdp" and overrides such as "start=noised"."""

    def load(*arguments: str) -> InterestConfig:
        layers = [
            f"model.interest.{argument}" if "=" in argument else str(CONFIGS / f"{argument}.toml")
            for argument in arguments
        ]
        return load_config(_Experiment, layers).model.interest

    return load


@pytest.fixture
def make_inputs() -> MakeInputs:
    """Random inputs; every fourth impression has an empty history, others have empty segments."""

    def make(
        dims: InterestDims = DIMS,
        *,
        num_segments: int = 7,
        batch: int = 12,
        seed: int = 0,
        requires_grad: bool = False,
    ) -> InterestInput:
        generator = torch.Generator().manual_seed(seed)

        def embedding(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator) * 0.1

        lengths = torch.randint(0, 4, (batch, num_segments), generator=generator).float()
        lengths[:, 0] += 1
        lengths[::4] = 0
        sums = embedding(batch, num_segments, dims.item) * lengths.unsqueeze(2)
        matches = (torch.rand(batch, num_segments, generator=generator) * (lengths + 1)).floor()
        return InterestInput(
            user=embedding(batch, dims.user).requires_grad_(requires_grad),
            query=embedding(batch, dims.query).requires_grad_(requires_grad),
            item=embedding(batch, dims.item).requires_grad_(requires_grad),
            item_attributes=embedding(batch, dims.item_attributes).requires_grad_(requires_grad),
            context=embedding(batch, dims.context).requires_grad_(requires_grad),
            scene=embedding(batch, dims.scene).requires_grad_(requires_grad),
            key=torch.randint(2**62, (batch,), generator=generator),
            history=GatedPool(
                sums=sums.requires_grad_(requires_grad), lengths=lengths, matches=matches
            ),
        )

    return make


@pytest.fixture
def make_module(load_interest: LoadInterest) -> MakeModule:
    """The module of some layers and overrides, with parameters off their zero starts."""

    def make(*arguments: str, dims: InterestDims = DIMS, perturb: bool = True) -> InterestModule:
        config = load_interest(*arguments)
        num_segments = 1 if config.kind == "none" else config.num_segments
        module = build_interest(config, dims, num_segments=num_segments)
        if perturb:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return module

    return make
