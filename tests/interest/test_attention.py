"""What SIM, TWIN, QIN and DIN share: search and attention."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from cdp_torchrec.interest import attention
from cdp_torchrec.interest.attention import attend, attend_to_past, retrieve, top_k
from tests.interest.sequences import padded
from tests.interest.variants import ATTENTIVE, VARIANTS


def test_padding_does_not_outrank_behaviours_with_negative_scores():
    """Scores times mask, as in a public re-implementation of SIM, keeps the padding at 0."""
    scores = torch.tensor([[-3.0, -1.0, 9.0, 0.0, -2.0]])
    mask = torch.tensor([[True, True, False, False, True]])
    places, kept = top_k(scores, mask, 2)
    assert sorted(places[0].tolist()) == [1, 4]
    assert kept.all()
    places, kept = top_k(scores, mask, 4)
    assert sorted(places[0][kept[0]].tolist()) == [0, 1, 4]


def test_equal_scores_go_to_the_most_recent_behaviour():
    scores = torch.tensor([[1.0, 1.0, 0.0, 1.0, -0.5, -0.5]])
    for k, expected in ((2, [1, 3]), (5, [0, 1, 2, 3, 5])):
        places, _ = top_k(scores, torch.tensor(True), k)
        assert sorted(places[0].tolist()) == expected


def test_top_k_agrees_with_sorting():
    scores = torch.randn(50, 33) * torch.logspace(-20, 20, 33)
    places, kept = top_k(scores, torch.ones(50, 33, dtype=torch.bool), 7)
    expected = scores.sort(dim=1, descending=True).values[:, :7]
    assert kept.all()
    assert torch.equal(scores.gather(1, places).sort(dim=1, descending=True).values, expected)


def test_a_mask_and_gathered_rows_retrieve_the_same(monkeypatch):
    behaviour = torch.arange(3 * 16).view(3, 16)
    behaviour[:, :5] = behaviour[2, :] = 48
    scores, query = torch.randn(3, 4, 16), torch.randn(3, 4, 8)
    keys, values = torch.randn(2, 49, 8).unbind()
    results = []
    for dense_up_to in (4, 1):
        monkeypatch.setattr(attention, "_DENSE_UP_TO", dense_up_to)
        found = retrieve(scores, behaviour, num_behaviours=48, k=4)
        assert (len(found.behaviour) == 3) == (dense_up_to == 4)
        attended = attend(
            found.as_rows(query),
            keys[found.behaviour],
            values[found.behaviour],
            found.mask,
            num_heads=2,
        )
        results.append(attended.view(3, 4, 8))
    torch.testing.assert_close(results[0], results[1])
    assert not results[0][2].any()


def test_attention_is_scaled_dot_product_attention():
    query, keys, values = torch.randn(3, 4, 8), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    mask, bias = torch.rand(3, 4, 5) < 0.7, torch.randn(3, 5, 2)
    mask[:, :, 0] = True
    q, k, v = (x.unflatten(2, (2, 4)).transpose(1, 2) for x in (query, keys, values))
    added = bias.permute(0, 2, 1).unsqueeze(2).masked_fill(~mask.unsqueeze(1), -torch.inf)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=added)
    attended = attend(query, keys, values, mask, num_heads=2, bias=bias)
    torch.testing.assert_close(attended, expected.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_attention_to_the_past_is_that_under_a_mask(dtype):
    """Padding on the left, in the middle, everywhere and nowhere; values and gradients."""
    kept = torch.ones(4, 70, dtype=torch.bool)
    kept[0, :33], kept[1, 20:40], kept[2] = False, False, False
    past = torch.ones(70, 70, dtype=torch.bool).tril() & kept.unsqueeze(1)
    torch.manual_seed(0)
    parts = [torch.randn(4, 70, 6).to(dtype).requires_grad_() for _ in range(3)]
    queries, keys, values = parts
    found = attend_to_past(queries, keys, values, kept, num_heads=2)
    assert found.isfinite().all()
    expected = attend(queries, keys, values, past, num_heads=2)
    results = []
    for attended in (found, expected):
        read = attended[kept]
        results.append([read, *torch.autograd.grad(read.float().sin().sum(), parts)])
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.05}[dtype]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v[0] in ATTENTIVE], ids="+".join)
def test_attention_to_an_empty_history_gives_zeros(make_module, make_inputs, variant):
    module = make_module(*variant)
    assert not module(make_inputs(lengths=[0, 0, 0, 0])).interest.any()


@pytest.mark.parametrize(
    "variant",
    [
        ("interest/sim_soft", "num_kept=5"),
        ("interest/eta", "num_kept=5"),
        ("interest/qin", "num_query_kept=9", "num_kept=5"),
    ],
    ids="+".join,
)
def test_which_of_the_same_items_is_kept_does_not_depend_on_padding(
    make_module, make_inputs, variant
):
    """Fails where products of matrices in float32, which round by place, decide between them."""
    module = make_module(*variant).eval()
    inputs = make_inputs(batch=40, lengths=[57, 64])
    recent = inputs.recent
    kind = torch.randint(6, (len(recent.item),))
    recent = replace(recent, item=recent.item[:6][kind], category=recent.category[:6][kind])
    interest = module(replace(inputs, recent=recent)).interest
    for places in range(1, 9):
        again = module(replace(inputs, recent=padded(recent, places))).interest
        torch.testing.assert_close(again, interest, rtol=1e-4, atol=1e-6)
