"""MTGR: its mask, its norms, and a row of several requests that is as good as single ones."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cdp_torchrec.interest.base import InterestDims, InterestInput
from cdp_torchrec.interest.config.long_sequence import MtgrConfig
from cdp_torchrec.interest.mtgr import MtgrInterest
from cdp_torchrec.interest.mtgr_layer import GroupLayerNorm, MtgrLayer
from cdp_torchrec.interest.output import layer_norm
from cdp_torchrec.interest.sequence import BehaviourSequence
from tests.gradients import in_float64
from tests.interest.conftest import make_sequence

HOUR = 3600.0
LENGTHS = [0, 2, 9, 21]


def make_mtgr(dims: InterestDims, **settings: object) -> MtgrInterest:
    settings = {"kind": "mtgr", "num_heads": 2, "attention_dim": 3, "linear_dim": 4} | settings
    module = MtgrInterest(MtgrConfig.model_validate(settings), dims)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double()


def in_order_of_time(recent: BehaviourSequence) -> BehaviourSequence:
    """The same, an hour between two behaviours of a sequence."""
    index = recent.index
    ends = index.lengths.cumsum(0)[index.owner]
    age = HOUR * (ends - torch.arange(len(ends))).double()
    return replace(recent, index=replace(index, age=age))


@pytest.fixture
def inputs(make_inputs) -> InterestInput:
    """Histories of 0, 2, 9 and 21 behaviours, an hour apart; three candidates read each."""
    inputs = in_float64(make_inputs(lengths=LENGTHS))
    return replace(inputs, recent=in_order_of_time(inputs.recent))


def plain_layer(layer: MtgrLayer, x: Tensor, kinds: Tensor, mask: Tensor, hours: Tensor) -> Tensor:
    """HSTU's unit on all tokens [X, D] of one request."""

    def norm(group: GroupLayerNorm, x: Tensor) -> Tensor:
        kind = kinds.clamp(max=len(group.weight) - 1)
        return (
            functional.layer_norm(x, x.shape[1:], eps=1e-6) * group.weight[kind] + group.bias[kind]
        )

    heads = layer.attention.num_heads
    projected = layer.uqvk(norm(layer.input_norm, x)).split(layer.widths, dim=1)
    u, (q, v, k) = projected[0], (p.view(len(x), heads, -1).transpose(0, 1) for p in projected[1:])
    forgetting = -torch.log(1 + hours) * layer.slopes.view(-1, 1, 1)
    weights = functional.silu(q @ k.transpose(1, 2) * layer.attention.scale + forgetting) * mask
    seen = (weights @ v).transpose(0, 1).flatten(1) / layer.attention.num_tokens
    return x + layer.out(functional.silu(u) * norm(layer.output_norm, seen))


def plain_mtgr(module: MtgrInterest, inputs: InterestInput, b: int, realtime_s: float) -> Tensor:
    """The candidate's token of one request, every token in one sequence."""
    recent = inputs.recent
    assert recent is not None and module.user is not None
    own = recent.index.owner == recent.index.sequence[b]
    age = recent.index.age[own]
    behaviours = torch.cat([recent.item, recent.category, recent.action], dim=1)[own]
    parts = [inputs.item, inputs.item_attributes, inputs.query, inputs.context, inputs.scene]
    x = torch.cat(
        [
            layer_norm(module.candidate(torch.cat([part[b] for part in parts]))).unsqueeze(0),
            layer_norm(module.behaviour(behaviours)),
            layer_norm(module.user(inputs.user[b])).unsqueeze(0),
        ]
    )
    static = age >= realtime_s
    kinds = torch.tensor([0, *torch.where(static, 1, 2).tolist(), 3])
    mask = torch.eye(len(x))
    hours = torch.zeros(len(x), len(x), dtype=x.dtype)
    for i, of_query in enumerate(kinds.tolist()):
        for j, of_key in enumerate(kinds.tolist()):
            is_later = of_query == 0 or (of_query == 2 and j < i)
            if of_key in (1, 3) or (of_key == 2 and is_later):
                mask[i, j] = 1
            if of_key in (1, 2) and of_query != 3:
                now = 0.0 if of_query == 0 else age[i - 1]
                hours[i, j] = (age[j - 1] - now).abs() / HOUR
    for layer in module.layers:
        assert isinstance(layer, MtgrLayer)
        x = plain_layer(layer, x, kinds, mask, hours)
    return x[0]


def test_the_interest_is_that_of_hstu_under_the_mask_with_a_norm_for_each_kind(inputs, dims):
    """Fails when static behaviours are causal, real-time ones are not, a candidate sees another, a
    kind has the norm of another, or scores are divided by a length of the batch."""
    module = make_mtgr(dims, realtime_hours=5.5, num_layers=3)
    tokens = torch.stack([plain_mtgr(module, inputs, b, 5.5 * HOUR) for b in range(12)])
    expected = module.vector(module.norm(tokens), inputs.item)
    torch.testing.assert_close(module(inputs).interest, expected, rtol=0, atol=1e-12)


def test_no_gradient_is_computed_of_what_is_data(inputs, dims):
    """Fails when times and kinds, gathered with what has gradients, get one for each pair."""
    index = inputs.recent.index
    request_age, realtime_s = rows_of_three_requests(inputs.recent)
    data = [index.age.requires_grad_(), request_age.requires_grad_()]
    module = make_mtgr(dims)
    found = module.encode_rows(inputs, request_age=request_age, realtime_s=realtime_s)
    found.interest.sum().backward()
    assert not any(x.grad.any() for x in data if x.grad is not None)


def rows_of_three_requests(recent: BehaviourSequence) -> tuple[Tensor, Tensor]:
    """Age of each candidate's request, of which the last is 0; behaviours of 8 h are static."""
    request_age = torch.tensor([0.0, 2.5, 6.5]).repeat_interleave(4).double() * HOUR
    return request_age, torch.full(recent.index.lengths.shape, 8 * HOUR).double()


def before(recent: BehaviourSequence, request_age: float, sequence: list[int]) -> BehaviourSequence:
    """The part of each history that a request so long ago could know, with ages at that request."""
    index = recent.index
    kept = index.age > request_age
    lengths = [int((kept & (index.owner == s)).sum()) for s in range(len(LENGTHS))]
    dims = InterestDims(user=0, query=0, item=8, item_attributes=8, context=0, scene=0)
    part = make_sequence(replace(dims, category=8, action=8), 4, lengths, sequence=sequence)
    embeddings = {name: getattr(recent, name)[kept] for name in ("item", "category", "action")}
    ids = {name: getattr(index, name)[kept] for name in ("item_id", "category_id")}
    age = index.age[kept] - request_age
    return replace(part, **embeddings, index=replace(part.index, **ids, age=age))


def test_a_row_of_several_requests_equals_one_request_at_a_time(inputs, dims):
    """Fails when a candidate sees real-time behaviours after its own request."""
    module = make_mtgr(dims, num_layers=3)
    request_age, realtime_s = rows_of_three_requests(inputs.recent)
    together = module.encode_rows(inputs, request_age=request_age, realtime_s=realtime_s).interest
    for first in (0, 4, 8):  # four candidates, one of each history
        rows = slice(first, first + 4)
        names = ("user", "query", "item", "item_attributes", "context", "scene")
        names += ("key", "item_id", "category_id")
        alone = InterestInput(
            **{name: getattr(inputs, name)[rows] for name in names},
            recent=before(inputs.recent, float(request_age[first]), [0, 1, 2, 3]),
        )
        single = module.encode_rows(
            alone,
            request_age=torch.zeros(4).double(),
            realtime_s=realtime_s[rows] - request_age[first],
        ).interest
        torch.testing.assert_close(together[rows], single, rtol=0, atol=1e-12)


def test_events_after_a_request_have_no_gradient(inputs, dims):
    module = make_mtgr(dims, num_layers=3)
    request_age, realtime_s = rows_of_three_requests(inputs.recent)
    recent = inputs.recent
    item = recent.item.clone().requires_grad_()
    rows = replace(inputs, recent=replace(recent, item=item))
    interest = module.encode_rows(rows, request_age=request_age, realtime_s=realtime_s).interest
    (gradient,) = torch.autograd.grad(interest[8:].sin().sum(), item)  # the requests of 6.5 h ago
    later = recent.index.age <= 6.5 * HOUR
    assert later.sum() == 2 + 6 + 6
    assert not gradient[later].any()
    assert gradient[~later].abs().sum(dim=1).gt(0).all()


def test_one_request_in_a_row_is_what_a_batch_has(inputs, dims):
    module = make_mtgr(dims, realtime_hours=5.5)
    rows = module.encode_rows(
        inputs,
        request_age=torch.zeros(12).double(),
        realtime_s=torch.full((12,), 5.5 * HOUR).double(),
    )
    assert torch.equal(rows.interest, module(inputs).interest)


def test_a_request_before_its_real_time_behaviours_is_refused(inputs, dims):
    module = make_mtgr(dims)
    request_age, realtime_s = rows_of_three_requests(inputs.recent)
    request_age[7] = 8 * HOUR
    with pytest.raises(ValueError, match=r"request_age up to 28800 s: must be below realtime_s"):
        module.encode_rows(inputs, request_age=request_age, realtime_s=realtime_s)


def test_each_kind_of_token_has_a_layer_norm_of_its_own(inputs, dims):
    norm = GroupLayerNorm(3, 8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x, kinds = torch.randn(6, 8), torch.tensor([0, 2, 1, 1, 0, 2])
    for token, kind in enumerate(kinds.tolist()):
        single = torch.nn.LayerNorm(8, eps=1e-6)
        single.load_state_dict({"weight": norm.weight[kind], "bias": norm.bias[kind]})
        torch.testing.assert_close(norm(x, kinds)[token], single(x[token]), rtol=1e-6, atol=1e-6)
    # In a layer that encodes the history, none of them is idle.
    module = make_mtgr(dims, realtime_hours=5.5)
    module(inputs).interest.sin().sum().backward()
    layer = module.layers[0]
    assert isinstance(layer, MtgrLayer)
    for group in (layer.input_norm, layer.output_norm):
        assert group.weight.shape[0] == 4 and group.weight.grad is not None
        assert group.weight.grad.abs().sum(dim=1).gt(0).all()


def test_a_candidate_keeps_its_cross_features_and_sees_no_other_candidate(inputs, dims):
    module = make_mtgr(dims)
    context = inputs.context.clone()
    context[3] += 1.0  # a neighbour of impressions 7 and 11, which share its history of 21
    after = module(replace(inputs, context=context)).interest
    changed = (after != module(inputs).interest).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [3]
