"""Inputs of interest modules, and the configurations that the project ships."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cdp_torchrec.config import Config, load_config
from cdp_torchrec.data.history import sequence_index
from cdp_torchrec.data.history.sequence_index import SequenceColumns, index_sequences
from cdp_torchrec.interest import (
    BehaviourSequence,
    GatedPool,
    InterestConfig,
    InterestDims,
    InterestInput,
    InterestModule,
    build_interest,
)
from cdp_torchrec.model.config import InteractionConfig
from tests.paths import CONFIGS

DIMS = InterestDims(
    user=6,
    query=10,
    item=8,
    item_attributes=13,
    context=7,
    scene=3,
    category=8,
    action=8,
    domains=3,
)

MakeInputs = Callable[..., InterestInput]
LoadInterest = Callable[..., InterestConfig]
MakeModule = Callable[..., InterestModule]


class _Model(Config):
    interest: InterestConfig
    interaction: InteractionConfig = InteractionConfig()


class Experiment(Config):
    model: _Model


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs as small as these would stand in one block: another for each length."""
    monkeypatch.setattr(sequence_index, "_PAIRS_PER_BLOCK", 0)


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
        return load_config(Experiment, layers).model.interest

    return load


def make_sequence(
    dims: InterestDims,
    batch: int = 12,
    lengths: list[int] | None = None,
    *,
    sequence: list[int] | None = None,
    seed: int = 0,
    requires_grad: bool = False,
) -> BehaviourSequence:
    """Sequences of random behaviours; by default 4 of 0, 3, 8 and 21 that the impressions share.

    Args:
        dims: widths.
        batch: impressions.
        lengths: behaviours of each sequence.
        sequence: sequence of each impression.
        seed: another seed, other behaviours.
        requires_grad: of the embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    if lengths is None:
        lengths = [0, 3, 8, 21][: max(1, batch)]
    if sequence is None:
        sequence = [place % len(lengths) for place in range(batch)]
    total = sum(lengths)

    def embedding(width: int) -> torch.Tensor:
        values = torch.randn(total, width, generator=generator) * 0.1
        return values.requires_grad_(requires_grad)

    columns = SequenceColumns(
        item_id=torch.randint(1, 50, (total,), generator=generator).numpy(),
        category_id=torch.randint(1, 5, (total,), generator=generator).numpy(),
        age_s=torch.rand(total, generator=generator).mul(1e6).add(1).numpy(),
        lengths=np.array(lengths),
        sequence=np.array(sequence),
        size=1 + np.arange(total) % 20,
    )
    return BehaviourSequence(
        item=embedding(dims.item),
        category=embedding(dims.category),
        action=embedding(dims.action),
        index=index_sequences(columns, batch_size=batch),
    )


def make_part(
    pooled: torch.Tensor,
    width: int,
    *,
    seed: int,
    num_segments: int = 1,
    requires_grad: bool = False,
) -> GatedPool:
    """Random sums of 0 to n behaviours, for histories with these lengths of segments, [B, K]."""
    generator = torch.Generator().manual_seed(seed)
    whole = pooled.sum(dim=1, keepdim=True)
    lengths = (torch.rand(len(pooled), 1, generator=generator) * (whole + 1)).floor()
    return make_segments(
        lengths, width, num_segments, generator=generator, requires_grad=requires_grad
    )


def make_segments(
    lengths: torch.Tensor,
    width: int,
    num_segments: int,
    *,
    generator: torch.Generator,
    requires_grad: bool = False,
) -> GatedPool:
    """Random sums of histories of these lengths, [B, 1], whose behaviours fall anywhere."""
    share = torch.rand(len(lengths), num_segments, generator=generator)
    edges = (share.cumsum(1) / share.sum(1, keepdim=True) * lengths).round()
    lengths = edges.diff(dim=1, prepend=torch.zeros(len(edges), 1))
    sums = torch.randn(*lengths.shape, width, generator=generator) * 0.1 * lengths.unsqueeze(2)
    return GatedPool(sums=sums.requires_grad_(requires_grad), lengths=lengths)


def make_whole(
    pooled: torch.Tensor, width: int, *, seed: int, requires_grad: bool = False
) -> GatedPool:
    """Random sums of n to n + 5 behaviours, for histories with these lengths of segments."""
    generator = torch.Generator().manual_seed(seed)
    lengths = pooled.sum(dim=1, keepdim=True)
    if lengths.any():
        lengths += torch.randint(0, 6, lengths.shape, generator=generator)
    sums = torch.randn(len(pooled), 1, width, generator=generator) * 0.1 * lengths.unsqueeze(2)
    return GatedPool(sums=sums.requires_grad_(requires_grad), lengths=lengths)


@pytest.fixture
def make_inputs() -> MakeInputs:
    """Random inputs of 4 requests; every fourth impression has an empty history."""

    def make(
        dims: InterestDims = DIMS,
        *,
        num_segments: int = 7,
        batch: int = 12,
        seed: int = 0,
        lengths: list[int] | None = None,
        requires_grad: bool = False,
    ) -> InterestInput:
        generator = torch.Generator().manual_seed(seed)

        def embedding(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator) * 0.1

        pooled = torch.randint(0, 4, (batch, num_segments), generator=generator).float()
        pooled[:, 0] += 1
        pooled[::4] = 0
        if lengths is not None and not any(lengths):
            pooled[:] = 0
        sums = embedding(batch, num_segments, dims.item) * pooled.unsqueeze(2)
        num_requests = 4 if lengths is None else len(lengths)
        request = torch.arange(batch) % num_requests

        def of_request(width: int) -> torch.Tensor:
            return embedding(num_requests, width)[request].requires_grad_(requires_grad)

        return InterestInput(
            user=of_request(dims.user),
            query=of_request(dims.query),
            item=embedding(batch, dims.item).requires_grad_(requires_grad),
            item_attributes=embedding(batch, dims.item_attributes).requires_grad_(requires_grad),
            context=embedding(batch, dims.context).requires_grad_(requires_grad),
            scene=of_request(dims.scene),
            key=torch.randint(2**62, (batch,), generator=generator),
            item_id=torch.randint(1, 50, (batch,), generator=generator),
            category_id=torch.randint(1, 5, (batch,), generator=generator),
            progress=torch.full((batch,), 10.0),
            domain_id=request % max(dims.domains, 1),
            pool=GatedPool(sums=sums.requires_grad_(requires_grad), lengths=pooled),
            daypart=make_segments(
                pooled.sum(dim=1, keepdim=True),
                dims.item,
                dims.dayparts,
                generator=torch.Generator().manual_seed(seed + 6),
                requires_grad=requires_grad,
            ),
            part=make_part(
                pooled,
                dims.item,
                seed=seed + 3,
                num_segments=dims.dayparts,
                requires_grad=requires_grad,
            ),
            whole=make_whole(pooled, dims.item, seed=seed + 4, requires_grad=requires_grad),
            gated=make_sequence(dims, batch, lengths, seed=seed + 1, requires_grad=requires_grad),
            recent=make_sequence(dims, batch, lengths, seed=seed + 2, requires_grad=requires_grad),
            stranger=make_sequence(
                dims,
                batch,
                None if lengths is None else lengths[::-1],
                seed=seed + 5,
                requires_grad=requires_grad,
            ),
        )

    return make


@pytest.fixture
def make_module(load_interest: LoadInterest) -> MakeModule:
    """The module of some layers and overrides, with parameters off their zero starts."""

    def make(*arguments: str, dims: InterestDims = DIMS, perturb: bool = True) -> InterestModule:
        config = load_interest(*arguments)
        module = build_interest(config, dims)
        if perturb:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return module

    return make
