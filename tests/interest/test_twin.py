"""TWIN searches by the very scores with which it attends."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cdp_torchrec.interest.base import InterestInput
from cdp_torchrec.interest.config.attention import TwinConfig
from cdp_torchrec.interest.twin import TwinInterest


@pytest.fixture
def make_twin(dims):
    def make(lacking: str | None = None, **settings: Any) -> TwinInterest:
        available = dims if lacking is None else replace(dims, **{lacking: 0})
        module = TwinInterest(TwinConfig(kind="twin", **settings), available).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn_like(parameter))
        return module

    return make


def naive(module: TwinInterest, inputs: InterestInput, place: int) -> tuple[Tensor, Tensor]:
    """Scores of each head [H, n] and values [n, A] of one impression (paper section 4.2)."""
    recent = inputs.recent
    assert recent is not None
    own = recent.index.owner == recent.index.sequence[place]
    features = torch.cat([recent.item, recent.category], dim=1)[own]
    age = recent.index.age[own]
    target = torch.cat([inputs.item, inputs.item_attributes[:, : module.category_dim]], dim=1)
    query, keys = module.query(target[place]), module.key(features)
    bias = module.age_bias(age) * module.cross_weight[0]
    if module.action_bias is not None:
        bias = bias + module.action_bias(recent.action[own]) * module.cross_weight[1]
    width = len(query) // module.config.num_heads
    scores = [
        keys[:, head * width : (head + 1) * width] @ query[head * width : (head + 1) * width]
        for head in range(module.config.num_heads)
    ]
    values = module.value(torch.cat([features, recent.action[own], module.age(age)], dim=1))
    return torch.stack(scores) * width**-0.5 + bias.t(), values


@pytest.mark.parametrize("kept_by", ["mean", "each_head"])
@pytest.mark.parametrize("lacking", [None, "category", "action"])
def test_the_behaviours_attended_to_are_those_with_the_highest_scores(
    make_twin, make_inputs, dims, kept_by, lacking
):
    """Fails with other parameters in the search than in the attention, and with one cross bias
    for all positions, which the softmax would cancel."""
    module = make_twin(lacking, num_kept=6, kept_by=kept_by)
    available = dims if lacking is None else replace(dims, **{lacking: 0})
    inputs = make_inputs(available, lengths=[0, 3, 12, 40])
    interest = module(inputs).interest
    for place in range(12):
        scores, values = naive(module, inputs, place)
        if scores.shape[1] == 0:
            assert not interest[place].any()
            continue
        ranked = scores.mean(dim=0).expand_as(scores) if kept_by == "mean" else scores
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept.scatter_(1, ranked.topk(min(6, scores.shape[1])).indices, True)
        weights = scores.masked_fill(~kept, -torch.inf).softmax(dim=1)
        heads = values.unflatten(1, (len(scores), -1)).transpose(0, 1)
        expected = module.output((weights.unsqueeze(1) @ heads).flatten())
        torch.testing.assert_close(interest[place], expected, rtol=1e-4, atol=1e-4)


def test_gathered_and_masked_behaviours_give_the_same_interest(make_twin, make_inputs, monkeypatch):
    module, inputs = make_twin(num_kept=5), make_inputs(lengths=[0, 3, 40, 100])
    interest = module(inputs).interest
    monkeypatch.setattr("cdp_torchrec.interest.attention._DENSE_UP_TO", 100)
    torch.testing.assert_close(module(inputs).interest, interest)


def test_a_head_of_its_own_choice_keeps_other_behaviours(make_twin, make_inputs):
    module, inputs = make_twin(num_kept=3), make_inputs(lengths=[0, 3, 12, 40])
    other = make_twin(num_kept=3, kept_by="each_head")
    other.load_state_dict(module.state_dict())
    same = torch.isclose(module(inputs).interest, other(inputs).interest, atol=1e-6).all(dim=1)
    assert same.tolist() == [True, True, False, False] * 3


def test_search_has_no_parameters_of_its_own(make_twin):
    names = {name.split(".")[0] for name, _ in make_twin().named_parameters()}
    attention = {"query", "key", "value", "output"}
    assert names == attention | {"action_bias", "age_bias", "cross_weight", "age"}
    assert TwinConfig(kind="twin").num_kept == 100


def test_the_target_has_no_cross_features(make_twin, dims):
    """Fails where a candidate is given an action or a time, which it does not have yet."""
    module = make_twin()
    assert module.query.in_features == module.key.in_features == dims.item + dims.category
