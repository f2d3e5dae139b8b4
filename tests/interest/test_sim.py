"""SIM searches the history, attends to what it found, and reads the recent behaviours beside."""

import json
import logging
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from cdp_torchrec.interest.base import InterestDims
from cdp_torchrec.interest.config.attention import SimConfig
from cdp_torchrec.interest.recent_sequence import keep_recent, only_recent
from cdp_torchrec.interest.sequence import gather
from cdp_torchrec.interest.sim import SimInterest
from tests.gradients import idle_parameters, in_float64
from tests.interest.sequences import items_only
from tests.paths import GOLDEN


@pytest.fixture
def make_sim(dims):
    def make(
        search: Literal["hard", "soft"], lacking: str | None = None, **settings: Any
    ) -> SimInterest:
        available = dims if lacking is None else replace(dims, **{lacking: 0})
        return SimInterest(SimConfig(kind="sim", search=search, **settings), available)

    return make


def test_hard_search_reads_the_gated_history_and_soft_search_the_whole(make_sim):
    hard, soft = make_sim("hard").config.history, make_sim("soft").config.history
    assert (hard.gated, hard.recent, hard.recent_length) == (True, True, 10)
    assert (soft.gated, soft.recent, soft.recent_length) == (False, True, None)


@pytest.mark.parametrize("search", ["hard", "soft"])
def test_the_short_branch_reads_exactly_the_last_behaviours(make_sim, make_inputs, search):
    """Fails without the short branch, and with a slice that keeps one behaviour too few."""
    module = make_sim(search, short_length=4).eval()
    inputs = make_inputs(lengths=[6, 30], requires_grad=True)
    short = module(inputs).interest[:, module.interest_dim // 2 :]
    # The impressions of sequence 0 have even places.
    (gradient,) = torch.autograd.grad(short[::2].square().sum(), inputs.recent.item)
    assert gradient[:6].any(dim=1).tolist() == [False, False, True, True, True, True]
    assert not gradient[6:].any()


def test_only_its_own_click_model_trains_the_soft_search(make_sim, make_inputs):
    """Without an auxiliary loss the search would stay as it was drawn: top-k has no gradient."""
    module = make_sim("soft", num_kept=3).double()
    output = module(in_float64(make_inputs(lengths=[0, 3, 12, 40])))
    weights = [module.gsu.w_a.weight, module.gsu.w_b.weight]
    by_click_loss = torch.autograd.grad(
        output.interest.square().sum(), weights, allow_unused=True, retain_graph=True
    )
    assert by_click_loss == (None, None)
    assert idle_parameters(module.gsu, output.click_logits["search_loss"].sum()) == []
    assert module.loss_weights == {"search_loss": 1.0}
    assert make_sim("hard").loss_weights == {}


def test_the_click_model_reads_the_behaviours_weighed_by_relevance(make_sim, make_inputs):
    module = make_sim("soft")
    gsu, inputs = module.gsu, make_inputs(lengths=[0, 3, 12, 40])
    features = torch.cat([inputs.recent.item, inputs.recent.category], dim=1)
    target = torch.cat([inputs.item, inputs.item_attributes[:, : module.category_dim]], dim=1)
    logits = gsu.click_logits(target, features, inputs.recent)
    index = inputs.recent.index
    for place, sequence in enumerate(index.sequence.tolist()):
        own = features[index.owner == sequence]
        relevance = gsu.w_b(own) @ gsu.w_a(target[place])
        user = (relevance.unsqueeze(1) * own).sum(dim=0) / max(1, len(own))
        expected = gsu.click_model(torch.cat([user, target[place]]))
        torch.testing.assert_close(logits[place], expected.squeeze())


def test_attention_reads_what_the_search_finds_and_nothing_else(make_sim, make_inputs):
    """Fails where padding, of score 0, outranks behaviours of negative relevance."""
    module = make_sim("soft", num_kept=5).eval()
    inputs = make_inputs(lengths=[12, 40], requires_grad=True)
    features = torch.cat([inputs.recent.item, inputs.recent.category], dim=1)
    target = torch.cat([inputs.item, inputs.item_attributes[:, : module.category_dim]], dim=1)
    relevance = module.gsu.w_b(features) @ module.gsu.w_a(target).t()
    long = module(inputs).interest[:, : module.interest_dim // 2]
    for place, sequence in enumerate(inputs.recent.index.sequence.tolist()):
        own = inputs.recent.index.owner == sequence
        scores = relevance[:, place].masked_fill(~own, -torch.inf)
        (gradient,) = torch.autograd.grad(
            long[place].square().sum(), inputs.recent.item, retain_graph=True
        )
        found = gradient.any(dim=1).nonzero().flatten().tolist()
        assert found == sorted(scores.topk(5).indices.tolist())


def test_time_is_the_age_of_a_behaviour_not_its_position(make_sim, make_inputs):
    """Fails where the time since a behaviour is taken from its place in the sequence."""
    module = make_sim("hard").eval()
    inputs = make_inputs(lengths=[0, 3, 12, 40])
    gated = inputs.gated
    later = replace(gated, index=replace(gated.index, age=gated.index.age * 64))
    same, other = module(inputs).interest, module(replace(inputs, gated=later)).interest
    assert (same != other).any(dim=1).tolist() == [bool(place % 4) for place in range(12)]


def test_hard_search_without_a_category_is_logged_once(make_sim, caplog):
    with caplog.at_level(logging.WARNING):
        make_sim("hard", lacking="category")
    assert [record.message for record in caplog.records] == [
        "sim: the log has no category, so hard search finds the whole history"
    ]
    caplog.clear()
    make_sim("soft", lacking="category")
    make_sim("hard")
    assert caplog.records == []


def test_heads_share_the_width_of_the_attention(make_sim):
    with pytest.raises(ValidationError, match="attention_dim = 32 is no multiple of num_heads = 5"):
        make_sim("hard", num_heads=5)


def test_official_search_and_attention_give_the_same_interest(make_inputs):
    """Model_DIN of github.com/tttwwy/sim; its mask keeps one behaviour fewer than it is told."""
    golden = json.loads((GOLDEN / "sim.json").read_text())
    random, dim, lengths = np.random.RandomState(golden["seed"]), golden["dim"], golden["lengths"]
    target = random.standard_normal((len(lengths), dim))
    facts = random.standard_normal((len(lengths), golden["num_behaviours"], dim))
    dims = InterestDims(user=2, query=0, item=dim, item_attributes=0, context=0, scene=0)
    config = SimConfig(
        kind="sim",
        search="soft",
        num_kept=golden["first_att_top_k"] - 1,
        attention_dim=dim,
        num_heads=1,
        search_dim=dim,
    )
    module = SimInterest(config, dims).eval()
    assert module.gsu is not None
    identity = torch.eye(dim)
    with torch.no_grad():
        # Dot products of the embeddings themselves, and no time.
        module.gsu.w_a.weight.copy_(identity)
        module.gsu.w_b.weight.copy_(identity)
        module.esu.query.weight.copy_(identity * dim**0.5)
        no_time = functional.pad(identity, (0, config.age_dim))
        module.esu.key_value.weight.copy_(torch.cat([no_time, no_time]))
        module.esu.output.weight.copy_(identity)
    rows = np.concatenate([fact[:length] for fact, length in zip(facts, lengths, strict=True)])
    recent = items_only(torch.from_numpy(rows).float(), lengths)
    inputs = replace(
        make_inputs(dims, batch=len(lengths)), item=torch.from_numpy(target).float(), recent=recent
    )
    interest = module(inputs).interest[:, :dim]
    torch.testing.assert_close(interest, torch.tensor(golden["interest"]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("length", [1, 5, 30])
def test_dropping_older_behaviours_is_hiding_them(make_inputs, length):
    """The same rows in every block, and an index that fits what is left."""
    sequence = make_inputs(batch=20, lengths=[0, 3, 40, 8, 21]).recent
    index = replace(sequence.index, attributes=torch.randn(len(sequence.item), 2))
    sequence = replace(sequence, index=index)
    hidden, dropped = keep_recent(sequence, length), only_recent(sequence, length)
    assert dropped.index.lengths.tolist()[:5] == [min(n, length) for n in (0, 3, 40, 8, 21)]
    assert len(dropped.item) == len(dropped.index.owner) == int(dropped.index.lengths.sum())
    for kind in ("sequence_blocks", "candidate_blocks"):
        pairs = zip(getattr(hidden.index, kind), getattr(dropped.index, kind), strict=True)
        for theirs, ours in pairs:
            for name in ("item", "category", "action"):
                expected = gather(getattr(hidden, name), theirs.behaviour)
                assert torch.equal(gather(getattr(dropped, name), ours.behaviour), expected)
            assert hidden.index.attributes is not None and dropped.index.attributes is not None
            expected = gather(hidden.index.attributes, theirs.behaviour)
            assert torch.equal(gather(dropped.index.attributes, ours.behaviour), expected)
    for index in (hidden.index, dropped.index):
        ages = [index.age[index.owner == row][-length:] for row in range(5)]
        assert torch.equal(torch.cat(ages), dropped.index.age)


def test_blocks_cut_to_one_length_become_one(make_inputs):
    """Their rows stay in order, so every result still finds its impression."""
    sequence = make_inputs(batch=20, lengths=[9, 13, 40, 8, 21]).recent
    recent = keep_recent(sequence, 8)
    assert len(sequence.index.candidate_blocks) == 5
    assert len(recent.index.candidate_blocks) == len(recent.index.sequence_blocks) == 1
    places = torch.arange(20.0).unsqueeze(1)
    found = recent.per_candidate(lambda block, rows: rows, recent.candidates(places))
    assert torch.equal(found, places)
