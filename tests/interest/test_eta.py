"""ETA searches by hashes of the embeddings, attends to what it found, and reads the recent ones."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from cdp_torchrec.interest.base import InterestDims
from cdp_torchrec.interest.config.attention import EtaConfig
from cdp_torchrec.interest.eta import EtaInterest, SimHash
from tests.interest.sequences import items_only
from tests.paths import GOLDEN


@pytest.fixture
def make_eta(dims):
    def make(**settings: Any) -> EtaInterest:
        return EtaInterest(EtaConfig(kind="eta", **settings), dims).eval()

    return make


def test_the_hamming_distance_over_the_bits_converges_to_the_angle_over_pi():
    num_bits = 1 << 14
    simhash = SimHash(dim=8, num_bits=num_bits)
    x, y = torch.randn(2, 100, 8, dtype=torch.float64)
    angle = torch.cosine_similarity(x, y).acos()
    distance = (simhash(x) != simhash(y)).double().mean(dim=1)
    # A mean of bits that differ with that probability: within 5 standard deviations.
    assert (distance - angle / math.pi).abs().max() < 5 * 0.5 / num_bits**0.5
    assert torch.equal(simhash(-x), -simhash(x))
    assert torch.equal(simhash(3 * x), simhash(x))


def test_the_search_keeps_the_behaviours_at_the_least_distance(make_eta, make_inputs):
    """Fails where padding, with a distance of its own, outranks behaviours."""
    module = make_eta(num_kept=5, num_bits=256)
    inputs = make_inputs(lengths=[3, 12, 40], requires_grad=True)
    target = torch.cat([inputs.item, inputs.item_attributes[:, : module.category_dim]], dim=1)
    features = torch.cat([inputs.recent.item, inputs.recent.category], dim=1)
    long = module(inputs).interest[:, : module.interest_dim // 2]
    for place, sequence in enumerate(inputs.recent.index.sequence.tolist()):
        own = (inputs.recent.index.owner == sequence).nonzero().flatten()
        bits = module.hash(features[own]) > 0
        distance = (bits != (module.hash(target[place : place + 1]) > 0)).sum(dim=1)
        # Equal distances: the most recent first.
        ranked = sorted(range(len(own)), key=lambda j: (distance[j].item(), -j))
        (gradient,) = torch.autograd.grad(
            long[place].square().sum(), inputs.recent.item, retain_graph=True
        )
        found = gradient.any(dim=1).nonzero().flatten().tolist()
        assert found == sorted(own[ranked[:5]].tolist())


def test_a_search_that_keeps_all_is_the_attention_over_the_whole_history(make_eta, make_inputs):
    """For any hash: with k >= n the search decides nothing."""
    inputs = make_inputs(lengths=[0, 3, 12, 40])
    module, other = make_eta(num_kept=40), make_eta(num_kept=40)
    kept = {k: v for k, v in module.state_dict().items() if k != "hash.projections"}
    other.load_state_dict(kept, strict=False)
    assert not torch.equal(other.hash.projections, module.hash.projections)
    assert torch.equal(other(inputs).interest, module(inputs).interest)
    fewer = make_eta(num_kept=39)
    fewer.load_state_dict(module.state_dict())
    changed = (fewer(inputs).interest != module(inputs).interest).any(dim=1)
    assert changed.tolist() == [False, False, False, True] * 3


def test_the_projections_follow_from_the_seed_and_do_not_train(make_eta, make_inputs):
    """Fails where they are drawn at each forward (LongCTR's reuse_hash = False): scores would be
    random."""
    torch.manual_seed(3)
    module = make_eta(num_kept=3)
    torch.manual_seed(3)
    assert torch.equal(make_eta(num_kept=3).hash.projections, module.hash.projections)
    before, inputs = module.hash.projections.clone(), make_inputs(lengths=[0, 3, 12, 40])
    optimizer = torch.optim.Adam(module.train().parameters(), lr=0.1)
    module(inputs).interest.square().sum().backward()
    optimizer.step()
    assert torch.equal(module.hash.projections, before)
    assert "hash.projections" not in dict(module.named_parameters())
    assert torch.equal(module(inputs).interest, module(inputs).interest)


def test_a_saved_module_brings_its_projections(make_eta, make_inputs):
    """Fails with a buffer that is not saved: another seed would give other scores."""
    inputs, module = make_inputs(lengths=[0, 3, 12, 40]), make_eta(num_kept=3)
    torch.manual_seed(7)
    loaded = make_eta(num_kept=3)
    loaded.load_state_dict(module.state_dict())
    assert torch.equal(loaded.hash.projections, module.hash.projections)
    assert torch.equal(loaded(inputs).interest, module(inputs).interest)


def test_hashes_are_those_of_the_embeddings_of_this_step(make_eta, make_inputs):
    """Fails where hashes are kept: after a step, search and attention would disagree."""
    module, inputs = make_eta(num_kept=3), make_inputs(lengths=[0, 3, 12, 40])
    first = module(inputs).interest
    moved = replace(inputs, recent=replace(inputs.recent, item=-inputs.recent.item))
    fresh = make_eta(num_kept=3)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(module(moved).interest, fresh(moved).interest)
    assert not torch.equal(module(moved).interest, first)


def test_the_short_branch_reads_exactly_the_last_behaviours(make_eta, make_inputs):
    """Fails without the short branch, and with LongCTR's slice, which keeps one too few."""
    module = make_eta(short_length=4)
    inputs = make_inputs(lengths=[6, 30], requires_grad=True)
    short = module(inputs).interest[:, module.interest_dim // 2 :]
    (gradient,) = torch.autograd.grad(short[::2].square().sum(), inputs.recent.item)
    assert gradient[:6].any(dim=1).tolist() == [False, False, True, True, True, True]
    assert not gradient[6:].any()


def test_third_party_search_and_attention_give_the_same_interest(make_inputs):
    """ETA of github.com/reczoo/LongCTR with its hash reused."""
    golden = json.loads((GOLDEN / "eta.json").read_text())
    random, dim = np.random.RandomState(golden["seed"]), golden["dim"]
    lengths, attention_dim = golden["lengths"], golden["attention_dim"]

    def drawn(*shape: int) -> torch.Tensor:
        return torch.from_numpy(random.standard_normal(shape))

    target = drawn(len(lengths), dim).float()
    facts = drawn(len(lengths), golden["num_behaviours"], dim).float()
    projections = drawn(1, dim, golden["num_bits"]).squeeze(0)
    query, key, value = (drawn(attention_dim, dim) * 0.3 for _ in range(3))
    output = drawn(dim, attention_dim) * 0.3
    dims = InterestDims(user=2, query=0, item=dim, item_attributes=0, context=0, scene=0)
    config = EtaConfig(
        kind="eta",
        num_bits=golden["num_bits"],
        num_kept=golden["num_kept"],
        attention_dim=attention_dim,
        num_heads=golden["num_heads"],
    )
    module = EtaInterest(config, dims).eval()
    no_time = (0, config.age_dim)
    module.hash.projections.copy_(projections)
    with torch.no_grad():
        module.long.query.weight.copy_(query)
        module.long.key_value.weight.copy_(functional.pad(torch.cat([key, value]), no_time))
        module.long.output.weight.copy_(output)
    rows = torch.cat([fact[:length] for fact, length in zip(facts, lengths, strict=True)])
    found = (module.hash(rows) > 0).split(lengths)
    wanted = module.hash(target) > 0
    distances = [(f != w).sum(dim=1).tolist() for f, w in zip(found, wanted, strict=True)]
    assert distances == golden["distances"]
    recent = items_only(rows, lengths)
    inputs = replace(make_inputs(dims, batch=len(lengths)), item=target, recent=recent)
    interest = module(inputs).interest[:, :dim]
    torch.testing.assert_close(interest, torch.tensor(golden["interest"]), rtol=0, atol=1e-6)
