"""DIN weighs every behaviour by an MLP of it and the target."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.interest import din
from cdp_torchrec.interest.base import InterestDims, InterestInput
from cdp_torchrec.interest.config.attention import ActivationUnitConfig, DinConfig
from cdp_torchrec.interest.din import ActivationUnit, DinAttention, DinInterest
from cdp_torchrec.interest.output import layer_norm
from tests.gradients import in_float64
from tests.interest.sequences import items_only
from tests.paths import GOLDEN


def naive_scores(unit: ActivationUnit, target: Tensor, behaviours: Tensor) -> Tensor:
    """The MLP on [v, e, v - e, v * e, x] of every pair, [W, C, N]."""
    v = target.unsqueeze(2).expand(-1, -1, behaviours.shape[1], -1)
    e = behaviours.unsqueeze(1).expand(-1, target.shape[1], -1, -1)
    e, x = e.split([v.shape[3], e.shape[3] - v.shape[3]], dim=3)
    hidden = unit.first(torch.cat([v, e, v - e, v * e, x], dim=3))
    for index, layer in enumerate(unit.layers):
        match unit.activation:
            case "prelu":
                hidden = functional.prelu(hidden.movedim(3, 1), unit.slopes[index]).movedim(1, 3)
            case "relu":
                hidden = hidden.relu()
            case "sigmoid":
                hidden = hidden.sigmoid()
        hidden = layer(hidden)
    return hidden.squeeze(3)


@pytest.mark.parametrize("activation", ["prelu", "relu", "sigmoid"])
@pytest.mark.parametrize("layer_sizes", [(36,), (8, 4)])
@pytest.mark.parametrize("own_dim", [0, 3])
@pytest.mark.parametrize("length", [6, 50], ids=["by pairs", "by candidates"])
def test_splitting_the_first_layer_changes_no_score(activation, layer_sizes, own_dim, length):
    config = ActivationUnitConfig(activation=activation, layer_sizes=layer_sizes)
    unit = ActivationUnit(config, dim=5, own_dim=own_dim).double()
    target = torch.randn(3, 4, 5, dtype=torch.float64)
    behaviours = torch.randn(3, length, 5 + own_dim, dtype=torch.float64)
    with_one = functional.pad(behaviours, (0, 1), value=1.0)
    scores, naive = unit(target, with_one), naive_scores(unit, target, behaviours)
    torch.testing.assert_close(scores, naive)
    gradients = [
        torch.autograd.grad(s.square().sum(), list(unit.parameters())) for s in (scores, naive)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def with_embeddings(
    inputs: InterestInput, target: np.ndarray, facts: np.ndarray, lengths: list[int]
) -> InterestInput:
    """Impression b has target b and the first lengths[b] rows of facts b as its history."""
    rows = np.concatenate([fact[:length] for fact, length in zip(facts, lengths, strict=True)])
    recent = items_only(torch.from_numpy(rows).float(), lengths)
    item = torch.from_numpy(target).float()
    return replace(inputs, item=item, recent=recent, gated=recent)


def test_official_code_gives_the_same_interest(make_inputs):
    """din_attention of github.com/mouna99/dien; golden vector made as the file tells.

    Its last layer has a bias as well, which cancels in the softmax: here there is none.
    """
    golden = json.loads((GOLDEN / "din.json").read_text())
    random, dim, lengths = np.random.RandomState(golden["seed"]), golden["dim"], golden["lengths"]
    dims = InterestDims(
        user=2, query=0, item=dim, item_attributes=0, context=0, scene=0, category=0, action=0
    )
    config = ActivationUnitConfig(layer_sizes=(80, 40), activation="sigmoid", normalise="softmax")
    attention = DinAttention(config, dims)
    layers = [attention.unit.first, *attention.unit.layers]
    shapes = [(4 * dim, 80, 0.5), (80, 40, 0.5), (40, 1, 1.0)]
    for layer, (width, next_width, scale) in zip(layers, shapes, strict=True):
        assert isinstance(layer, nn.Linear)
        kernel = random.standard_normal((width, next_width)) * scale
        bias = random.standard_normal(next_width) * 0.1
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(kernel.T))
            if layer.bias is not None:
                layer.bias.copy_(torch.from_numpy(bias))
    assert layers[-1].bias is None
    target = random.standard_normal((len(lengths), dim))
    facts = random.standard_normal((len(lengths), golden["num_behaviours"], dim))
    inputs = with_embeddings(make_inputs(dims, batch=len(lengths)), target, facts, lengths)
    interest = attention(inputs, inputs.recent)
    torch.testing.assert_close(interest, torch.tensor(golden["interest"]), rtol=0, atol=2e-6)


def test_the_shipped_unit_is_an_mlp_of_every_pair_and_a_softmax(dims, make_inputs, load_interest):
    """Each behaviour by itself, in float64: layer norms, [v, e, v - e, v * e, x], ReLU, softmax."""
    config = load_interest("interest/din").attention
    assert (config.layer_sizes, config.activation, config.normalise) == ((36,), "relu", "softmax")
    attention, inputs = DinAttention(config, dims).double(), in_float64(make_inputs())
    found, recent = attention(inputs, inputs.recent), inputs.recent
    category = inputs.item_attributes[:, : dims.category]
    assert attention.age is not None
    age = attention.age(recent.index.age)
    ends = recent.index.lengths.cumsum(0)
    for place, row in enumerate(recent.index.sequence.tolist()):
        v = torch.cat([layer_norm(inputs.item[place]), layer_norm(category[place])])
        scores, items = [], []
        for n in range(int(ends[row] - recent.index.lengths[row]), int(ends[row])):
            item, action = layer_norm(recent.item[n]), layer_norm(recent.action[n])
            e = torch.cat([item, layer_norm(recent.category[n])])
            hidden = attention.unit.first(torch.cat([v, e, v - e, v * e, action, age[n]]))
            scores.append(attention.unit.layers[0](hidden.relu()))
            items.append(item)
        expected = torch.zeros(dims.item, dtype=torch.float64)
        if scores:
            expected = torch.cat(scores).softmax(dim=0) @ torch.stack(items)
        torch.testing.assert_close(found[place], expected)


@pytest.mark.parametrize("normalise", ["none", "softmax"])
def test_training_and_serving_give_the_same_score(dims, make_inputs, normalise):
    """Fails with batch norm or Dice on the statistics of a batch."""
    unit = ActivationUnitConfig(normalise=normalise)
    module = DinInterest(DinConfig(kind="din", attention=unit), dims)
    inputs = make_inputs(lengths=[0, 3, 12, 40])
    assert torch.equal(module.train()(inputs).interest, module.eval()(inputs).interest)


def test_a_few_rows_at_a_time_give_the_interest_of_all_at_once(dims, make_inputs, monkeypatch):
    inputs = make_inputs(dims, batch=40)
    attention = DinAttention(ActivationUnitConfig(activation="relu", normalise="softmax"), dims)
    results = []
    for num_pairs in (1, 1 << 20):
        monkeypatch.setattr(din, "_PAIRS_AT_ONCE", num_pairs)
        interest = attention(inputs, inputs.recent)
        gradients = torch.autograd.grad(interest.square().sum(), list(attention.parameters()))
        results.append([interest, *gradients])
    for row_by_row, at_once in zip(*results, strict=True):
        torch.testing.assert_close(row_by_row, at_once)


def test_without_softmax_the_interest_grows_with_relevant_behaviours(dims, make_inputs):
    """Fails with a softmax, which cannot tell two relevant behaviours from one."""
    inputs = make_inputs(dims, lengths=[1, 2], batch=2)
    item = inputs.recent.item[:1].expand(3, -1)
    category = inputs.recent.category[:1].expand(3, -1)
    recent = replace(inputs.recent, item=item, category=category)
    inputs = replace(
        inputs,
        item=inputs.item[:1].expand(2, -1),
        item_attributes=inputs.item_attributes[:1].expand(2, -1),
        recent=recent,
    )
    for normalise, ratio in (("none", 2.0), ("softmax", 1.0)):
        unit = ActivationUnitConfig(normalise=normalise)
        interest = DinAttention(unit, dims)(inputs, recent)
        torch.testing.assert_close(interest[1], ratio * interest[0])


def test_age_moves_weights_only_if_asked(dims, make_inputs):
    inputs = make_inputs(lengths=[0, 3, 12, 40])
    index = replace(inputs.recent.index, age=inputs.recent.index.age.flip(0))
    older = replace(inputs, recent=replace(inputs.recent, index=index))
    for features, equal in (((), True), (("age",), False)):
        unit = ActivationUnitConfig(score_features=features, normalise="softmax")
        attention = DinAttention(unit, dims)
        interests = [attention(of, of.recent) for of in (inputs, older)]
        assert torch.equal(*interests) == equal
