"""ADS reads behaviours and targets through weights that the domain generates."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdp_torchrec.interest.ads import AdsInterest, MetaNetworks
from cdp_torchrec.interest.attention import TargetAttention, find_all
from cdp_torchrec.interest.base import InterestInput
from cdp_torchrec.interest.config.attention import AdsConfig
from tests.gradients import in_float64
from tests.interest.sequences import take


@pytest.fixture
def make_ads(dims):
    def make(lacking: tuple[str, ...] = (), **settings: Any) -> AdsInterest:
        available = replace(dims, **dict.fromkeys(lacking, 0))
        module = AdsInterest(AdsConfig(kind="ads", **settings), available).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter))
        return module

    return make


def features_of(module: AdsInterest, inputs: InterestInput) -> tuple[Tensor, Tensor]:
    """Targets [B, F] and behaviours [L, F] before anything is generated."""
    recent = inputs.recent
    assert recent is not None
    target = torch.cat([inputs.item, inputs.item_attributes[:, : module.category_dim]], dim=1)
    return target, torch.cat([recent.item, recent.category], dim=1)


def without_modulation(module: AdsInterest) -> AdsInterest:
    """The same with meta-networks that generate nothing."""
    assert module.behaviours is not None
    module.behaviours.meta.start_at_zero(first=0)
    module.queries.start_at_zero(first=0)
    return module


def test_identity_modulation_with_one_query_is_plain_target_attention(make_ads, make_inputs, dims):
    module = without_modulation(make_ads(num_queries=1)).double()
    inputs = in_float64(make_inputs(lengths=[0, 3, 12, 40]))
    plain = TargetAttention(module.config, dims, norm="none").double()
    plain.load_state_dict(module.attention.state_dict())
    target, features = features_of(module, inputs)
    expected = plain(target, features, inputs.recent, find_all)
    torch.testing.assert_close(module(inputs).interest, expected, rtol=0, atol=1e-12)


def test_identity_modulation_with_several_queries_is_plain_target_attention(make_ads, make_inputs):
    """Equal queries attend alike, so that the parts of the output matrix add up."""
    module = without_modulation(make_ads(num_queries=3)).double()
    one = without_modulation(make_ads(num_queries=1)).double()
    weights = module.attention.state_dict()
    weights["output.weight"] = weights["output.weight"].unflatten(1, (3, -1)).sum(dim=1)
    one.attention.load_state_dict(weights)
    inputs = in_float64(make_inputs(lengths=[0, 3, 12, 40]))
    torch.testing.assert_close(module(inputs).interest, one(inputs).interest, rtol=0, atol=1e-12)


def test_training_starts_with_behaviours_as_they_are(make_module, make_inputs):
    module, inputs = make_module("interest/ads", perturb=False), make_inputs()
    other = replace(inputs, domain_id=(inputs.domain_id + 1) % 3, scene=inputs.scene + 1.0)
    for given in (inputs, other):
        _, features = features_of(module, inputs)
        modulated = module.behaviours(
            features, inputs.recent, scene=given.scene, domain=given.domain_id
        )
        assert torch.equal(modulated, features)


@pytest.mark.parametrize("changed", ["domain_id", "scene"])
def test_the_domain_alone_changes_the_score(make_ads, make_inputs, changed):
    """Fails where the private networks are not those of the request's domain. Without behaviours
    there is nothing to read otherwise."""
    module, inputs = make_ads(), make_inputs(lengths=[0, 3, 12, 40])
    other = {"domain_id": (inputs.domain_id + 1) % 3, "scene": inputs.scene + 1.0}
    first = module(inputs).interest
    second = module(replace(inputs, **{changed: other[changed]})).interest
    assert (first != second).any(dim=1).tolist() == [False, True, True, True] * 3


@pytest.mark.parametrize("part", ["behaviours", "queries"])
def test_the_domain_acts_through_behaviours_and_through_queries(make_ads, make_inputs, part):
    module, inputs = make_ads(), make_inputs(lengths=[3, 12])
    silent = module.queries if part == "behaviours" else module.behaviours.meta
    silent.start_at_zero(first=0)
    other = replace(inputs, domain_id=(inputs.domain_id + 1) % 3)
    assert (module(inputs).interest != module(other).interest).any(dim=1).all()


def test_the_interest_is_the_attention_of_naive_queries_over_naive_behaviours(
    make_ads, make_inputs
):
    module = make_ads().double()
    inputs = in_float64(make_inputs(lengths=[0, 3, 12, 40]))
    attention, config = module.attention, module.config
    target, features = features_of(module, inputs)
    recent, dim = inputs.recent, target.shape[1]
    interest = module(inputs).interest
    for place in range(12):
        own = recent.index.owner == recent.index.sequence[place]
        if not own.any():
            assert not interest[place].any()
            continue
        domain, scene = int(inputs.domain_id[place]), inputs.scene[place]
        weights = naive_meta(module.behaviours.meta, scene, domain)
        w_1, b_1, w_2, b_2 = weights.split([dim * 8, 8, 8 * dim, dim])
        behaviours = features[own]
        hidden = (behaviours @ w_1.view(dim, 8) + b_1).relu()
        behaviours = behaviours + hidden @ w_2.view(8, dim) + b_2
        asked = naive_meta(module.queries, torch.cat([target[place], scene]), domain)
        age = attention.age(recent.index.age[own]).double()
        facts = torch.cat([behaviours, recent.action[own], age], dim=1)
        keys, values = attention.key_value(facts).chunk(2, dim=1)
        attended = []
        for generated in asked.chunk(config.num_queries):
            query = attention.query(target[place] + generated)
            for q, k, v in zip(query.chunk(4), keys.chunk(4, 1), values.chunk(4, 1), strict=True):
                attended.append((k @ q / len(q) ** 0.5).softmax(dim=0) @ v)
        expected = attention.output(torch.cat(attended))
        torch.testing.assert_close(interest[place], expected, rtol=0, atol=1e-10)


def naive_meta(networks: MetaNetworks, x: Tensor, domain: int) -> Tensor:
    """A shared network, and the network of one domain cut out of those that stand side by side."""
    hidden, count = networks.private_hidden, networks.num_domains
    assert hidden is not None and networks.private_output is not None
    assert isinstance(networks.shared, nn.Module)
    weight, bias = hidden.weight.chunk(count)[domain], hidden.bias.chunk(count)[domain]
    output = networks.private_output.weight
    own = output[:, count:].chunk(count, dim=1)[domain]
    return networks.shared(x) + own @ (weight @ x + bias).relu() + output[:, domain]


def test_only_its_own_domain_trains_a_private_network(make_ads, make_inputs):
    module, inputs = make_ads(), make_inputs(lengths=[3, 12, 40])
    of_one = replace(inputs, domain_id=torch.ones_like(inputs.domain_id))
    module(of_one).interest.square().sum().backward()
    for networks in (module.behaviours.meta, module.queries):
        rows = networks.private_hidden.weight.grad.chunk(3)
        assert [bool(row.any()) for row in rows] == [False, True, False]
        assert networks.shared[0].weight.grad.any()


def test_domains_beyond_the_most_share_networks(make_ads, make_inputs):
    module, inputs = make_ads(max_domains=2), make_inputs(lengths=[3, 12])

    def interest(domain: int) -> Tensor:
        given = replace(inputs, domain_id=torch.full_like(inputs.domain_id, domain))
        return module(given).interest

    assert torch.equal(interest(2), interest(0))
    assert not torch.equal(interest(1), interest(0))


def test_requests_of_other_domains_change_nothing(make_ads, make_inputs):
    """Fails where weights are generated once for a batch."""
    module, inputs = make_ads().double(), in_float64(make_inputs(lengths=[3, 12, 40]))
    rows = (inputs.recent.index.sequence == 1).nonzero().flatten()
    alone = module(take(inputs, rows)).interest
    torch.testing.assert_close(alone, module(inputs).interest[rows], rtol=1e-10, atol=1e-10)


def test_without_domains_there_is_one_and_that_is_logged_once(make_ads, make_inputs, dims, caplog):
    with caplog.at_level(logging.WARNING):
        module = make_ads(("domains", "scene"))
    assert [record.message for record in caplog.records] == [
        "ads: the log has no id of role scene and level request, so all requests are of one domain"
    ]
    assert module.behaviours is None and module.queries.private_output is None
    inputs = make_inputs(replace(dims, scene=0, domains=0), lengths=[3, 12])
    first = module(inputs).interest
    assert torch.equal(module(replace(inputs, domain_id=inputs.domain_id + 1)).interest, first)
    assert torch.equal(module(replace(inputs, domain_id=None)).interest, first)
    caplog.clear()
    make_ads(("scene",))
    assert caplog.records == []
