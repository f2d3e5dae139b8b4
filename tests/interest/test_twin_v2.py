"""TWIN-V2 is TWIN over clusters, each of which weighs as much as its members."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cdp_torchrec.interest.base import InterestInput
from cdp_torchrec.interest.config.attention import TwinConfig, TwinV2Config
from cdp_torchrec.interest.twin import TwinInterest
from cdp_torchrec.interest.twin_v2 import TwinV2Interest
from tests.interest.sequences import items_only


@pytest.fixture
def make_both(dims):
    def make(lacking: tuple[str, ...] = (), **settings: Any) -> tuple[TwinInterest, TwinV2Interest]:
        available = replace(dims, **dict.fromkeys(lacking, 0))
        twin = TwinInterest(TwinConfig(kind="twin", **settings), available).eval()
        clustered = TwinV2Interest(TwinV2Config(kind="twin_v2", **settings), available).eval()
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.copy_(torch.randn_like(parameter))
        clustered.load_state_dict(twin.state_dict())
        return twin, clustered

    return make


def with_sizes(inputs: InterestInput, size: torch.Tensor) -> InterestInput:
    recent = inputs.recent
    assert recent is not None
    return replace(inputs, recent=replace(recent, index=replace(recent.index, size=size)))


@pytest.mark.parametrize("kept_by", ["mean", "each_head"])
def test_clusters_of_one_member_are_twin(make_both, make_inputs, kept_by):
    twin, clustered = make_both(num_kept=6, kept_by=kept_by)
    inputs = make_inputs(lengths=[0, 3, 12, 40])
    ones = torch.ones_like(inputs.recent.index.size)
    assert torch.equal(clustered(with_sizes(inputs, ones)).interest, twin(inputs).interest)


def test_equal_behaviours_are_one_cluster_of_their_number(make_both, make_inputs, dims):
    """In float64; fails without ln n in the attention."""
    twin, clustered = make_both(("category", "action"), num_kept=100)
    twin, clustered = twin.double(), clustered.double()
    item = torch.randn(5, dims.item, dtype=torch.float64)
    ages, sizes = [9e5, 7e4, 5e3, 300.0, 2.0], [3, 1, 7, 2, 20]
    once = items_only(item, [5], age_s=ages)
    each = items_only(
        item.repeat_interleave(torch.tensor(sizes), 0),
        [sum(sizes)],
        age_s=np.repeat(ages, sizes).tolist(),
    )
    inputs = make_inputs(replace(dims, category=0, action=0), batch=1)
    inputs = replace(inputs, item=inputs.item.double(), item_attributes=inputs.item[:, :0])
    of_clusters = with_sizes(replace(inputs, recent=once), torch.tensor(sizes).double())
    expected = twin(replace(inputs, recent=each)).interest
    torch.testing.assert_close(clustered(of_clusters).interest, expected, rtol=0, atol=1e-12)
    without = twin(replace(inputs, recent=once)).interest
    assert not torch.isclose(without, expected, atol=1e-3).all()


@pytest.mark.parametrize("kept_by", ["mean", "each_head"])
def test_the_number_of_members_counts_in_the_search_too(make_both, make_inputs, kept_by):
    """Fails where ln n stands in the attention alone: a large cluster of a lower score is lost."""
    _, clustered = make_both(num_kept=4, kept_by=kept_by)
    inputs = make_inputs(batch=1, lengths=[16], requires_grad=True)

    def read(sizes: torch.Tensor) -> set[int]:
        given = with_sizes(inputs, sizes)
        assert given.recent is not None
        (gradient,) = torch.autograd.grad(
            clustered(given).interest.square().sum(), given.recent.item, retain_graph=True
        )
        return set(gradient.any(dim=1).nonzero().flatten().tolist())

    ones = torch.ones(16)
    first = read(ones)
    left_out = min(set(range(16)) - first)
    large = ones.clone()
    large[left_out] = 1e30
    assert left_out in read(large)
