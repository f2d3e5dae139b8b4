"""QIN searches by query, then by target, and fuses two attentions by engagement."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from cdp_torchrec.data.history import sequence_index
from cdp_torchrec.interest.base import InterestDims
from cdp_torchrec.interest.config.attention import QinConfig
from cdp_torchrec.interest.qin import QinInterest
from tests.gradients import idle_parameters, in_float64

# Two dimensions: queries look along the first, targets along the second.
PLANE = InterestDims(
    user=1, query=2, item=2, item_attributes=0, context=0, scene=0, category=0, action=0
)


@pytest.fixture
def make_qin(dims):
    def make(dims: InterestDims = dims, **settings: Any) -> QinInterest:
        return QinInterest(QinConfig(kind="qin", **settings), dims)

    return make


def found_by(module: QinInterest, inputs, place: int) -> list[int]:
    """Behaviours that move the interest of an impression."""
    interest = module.eval()(inputs).interest[place]
    (gradient,) = torch.autograd.grad(interest.square().sum(), inputs.recent.item)
    return gradient.abs().sum(dim=1).nonzero().flatten().tolist()


def on_the_plane(make_inputs, angles: list[float]):
    """One impression, query (1, 0) and target (0, 1), and behaviours at angles in degrees."""
    radians = torch.tensor(angles).deg2rad()
    item = torch.stack([radians.cos(), radians.sin()], dim=1).requires_grad_()
    inputs = make_inputs(PLANE, batch=1, lengths=[len(angles)])
    return replace(
        inputs,
        query=torch.tensor([[1.0, 0.0]]),
        item=torch.tensor([[0.0, 1.0]]),
        recent=replace(inputs.recent, item=item),
    )


def test_the_query_searches_first_and_the_target_among_what_it_found(make_qin, make_inputs):
    """Fails in the other order: target first keeps 85 .. 60 degrees, then the query 60 and 65."""
    module = make_qin(PLANE, num_query_kept=6, num_kept=2, num_heads=1)
    with torch.no_grad():
        module.query_search.projection.weight.copy_(torch.eye(2))
        module.query_search.projection.bias.zero_()
    inputs = on_the_plane(make_inputs, [85.0, 5.0, 60.0, 10.0, 75.0, 15.0, 65.0, 20.0, 80.0, 25.0])
    assert found_by(module, inputs, 0) == [2, 9]
    without = make_qin(replace(PLANE, query=0), num_query_kept=6, num_kept=2, num_heads=1)
    assert found_by(without, inputs, 0) == [0, 8]


def test_a_search_that_keeps_everything_is_no_search(make_qin, make_inputs):
    inputs = make_inputs(lengths=[0, 3, 12, 40])
    module = make_qin(num_query_kept=100, num_kept=100).eval()
    wide = make_qin(num_query_kept=50, num_kept=50).eval()
    wide.load_state_dict(module.state_dict())
    torch.testing.assert_close(wide(inputs).interest, module(inputs).interest)


def test_a_short_history_is_read_whole_whatever_stands_in_its_block(
    make_qin, make_inputs, monkeypatch
):
    """Candidates are grouped otherwise than sequences: a short history may be padded to the length
    of one that is searched. Fails where it is then taken for one of which nothing was found."""
    module = make_qin(num_query_kept=9, num_kept=9).eval()
    inputs = make_inputs(lengths=[0, 3, 8, 40])  # a block for each length
    index = inputs.recent.index
    monkeypatch.setattr(sequence_index, "_PAIRS_PER_BLOCK", 1e9)
    together = make_inputs(lengths=[0, 3, 8, 40]).recent.index  # one block of all
    assert len(index.sequence_blocks) > len(together.candidate_blocks) == 1
    index = replace(index, candidate_blocks=together.candidate_blocks, place=together.place)
    mixed = replace(inputs, recent=replace(inputs.recent, index=index))
    torch.testing.assert_close(module(mixed).interest, module(inputs).interest)


def test_the_click_loss_does_not_reach_the_vectors_of_the_search(make_qin, make_inputs):
    """Fails where the query projection, and through it the search, learns from clicks."""
    module = make_qin(num_query_kept=9, num_kept=4).double()
    inputs = in_float64(make_inputs(lengths=[0, 3, 12, 40], requires_grad=True))
    output = module(inputs)
    search = list(module.query_search.parameters())
    by_click_loss = torch.autograd.grad(
        output.interest.square().sum(),
        [*search, inputs.query],
        allow_unused=True,
        retain_graph=True,
    )
    assert by_click_loss == (None, None, None)
    others = [inputs.query, inputs.item, inputs.item_attributes, inputs.recent.item]
    relevance_loss = output.losses["relevance_loss"].sum()
    by_relevance_loss = torch.autograd.grad(
        relevance_loss, others, allow_unused=True, retain_graph=True
    )
    assert by_relevance_loss == (None, None, None, None)
    assert idle_parameters(module.query_search, relevance_loss) == []


def test_relevance_tells_the_item_shown_from_an_own_behaviour(make_qin, make_inputs):
    search = make_qin(PLANE, num_heads=1, relevance_temperature=0.5).query_search
    with torch.no_grad():
        search.projection.weight.copy_(torch.eye(2))
        search.projection.bias.zero_()
    inputs = make_inputs(PLANE, batch=4, lengths=[0, 1])
    inputs = replace(inputs, query=torch.tensor([[1.0, 0.0]]).expand(4, 2))
    target = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    loss = search.relevance_loss(inputs, target, torch.tensor([[0.8, 0.6]]))
    # Impressions 0 and 2 have no history.
    closer = torch.tensor([(0.6 - 0.8) / 0.5, (-1.0 - 0.8) / 0.5])
    torch.testing.assert_close(loss[1::2], functional.softplus(-closer))
    assert not loss[::2].any()


def test_every_own_behaviour_may_be_drawn_and_no_other(make_qin, make_inputs):
    search = make_qin(PLANE, num_heads=1).query_search
    inputs = make_inputs(PLANE, batch=400, lengths=[3, 5])
    inputs = replace(inputs, query=torch.ones(400, 2))
    behaviours = torch.randn(8, 2)
    losses = search.relevance_loss(inputs, torch.zeros(400, 2), behaviours)
    possible = functional.softplus(
        behaviours @ search.direction(inputs.query)[0] / search.temperature
    )
    for own, found in ((possible[:3], losses[::2]), (possible[3:], losses[1::2])):
        nearest = (found.unsqueeze(1) - own).abs().min(dim=1)
        assert nearest.values.max() < 1e-5
        assert set(nearest.indices.tolist()) == set(range(len(own)))


def test_engagement_of_each_behaviour_fuses_the_two_attentions(make_qin, make_inputs):
    module = make_qin(attention_dim=8, num_heads=2).eval()
    inputs = make_inputs(batch=3, lengths=[7])
    recent, fused = inputs.recent, module.attention
    gate = fused.gate(torch.cat([recent.action, fused.age(recent.index.age)], dim=1))
    attribute = inputs.item_attributes[:, : module.category_dim]
    expected = torch.zeros(3, 8)
    for field, target, behaviours, weight in (
        (0, inputs.item, recent.item, gate),
        (1, attribute, recent.category, 1 - gate),
    ):
        query, key, value = (
            layers[field](x)
            for layers, x in (
                (fused.query, target),
                (fused.key, behaviours),
                (fused.value, behaviours),
            )
        )
        for head in (slice(0, 4), slice(4, 8)):
            attention = (query[:, head] @ key[:, head].t() / 2).softmax(dim=1)
            expected[:, head] += attention @ (weight * value[:, head])
    torch.testing.assert_close(module(inputs).interest, fused.output(expected))


def test_engagement_is_that_of_the_past_behaviour(make_qin, make_inputs):
    module = make_qin().eval()
    inputs = make_inputs(lengths=[0, 3, 12, 40])
    action = inputs.recent.action.clone()
    action[0] += 1.0
    other = module(replace(inputs, recent=replace(inputs.recent, action=action))).interest
    changed = (other != module(inputs).interest).any(dim=1)
    assert changed.tolist() == [False, True, False, False] * 3


def test_what_the_log_lacks_is_logged_once(make_qin, dims, caplog):
    with caplog.at_level(logging.WARNING):
        make_qin(replace(dims, query=0, category=0))
        make_qin()
    assert [record.message for record in caplog.records] == [
        "qin: the log has no query, so behaviours are searched by target alone",
        "qin: the log has no category, so there is no attribute attention",
    ]
    assert make_qin(replace(dims, query=0)).loss_weights == {}
