"""CaDiRec: parity with its code, what is masked, views, negatives that no batch decides."""

import json
import math
from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import Tensor

from cdp_torchrec.config import ConfigError
from cdp_torchrec.interest.base import InterestDims
from cdp_torchrec.interest.cadirec import CadirecInterest, views
from cdp_torchrec.interest.config.sequential import CadirecConfig, SasrecConfig
from cdp_torchrec.interest.sasrec import SasrecInterest
from cdp_torchrec.interest.sequence import BehaviourSequence
from cdp_torchrec.interest.sequence_denoiser import contrastive_loss
from cdp_torchrec.interest.sequence_rows import sequence_keys
from cdp_torchrec.interest.stranger import (
    next_behaviours_beside,
    stranger_places,
)
from cdp_torchrec.keyed_random import impression_key
from tests.golden_wave import wave
from tests.interest.sequences import items_only, take
from tests.paths import GOLDEN

GOLDEN_VECTORS = json.loads((GOLDEN / "cadirec.json").read_text())
ITEMS_ONLY = InterestDims(user=0, query=0, item=8, item_attributes=0, context=0, scene=0)


def make_cadirec(dims: InterestDims, **settings: object) -> CadirecInterest:
    return CadirecInterest(CadirecConfig.model_validate({"kind": "cadirec"} | settings), dims)


def histories(*item_ids: list[int], table: Tensor | None = None) -> BehaviourSequence:
    """Histories of these items, one impression for each."""
    codes = [*chain(*item_ids)]
    table = wave(60, 8, phase=10.0) if table is None else table
    return items_only(table[codes], [len(ids) for ids in item_ids], item_id=codes)


class Published:
    """The denoiser with the parameters of the golden vectors, on their histories."""

    def __init__(self) -> None:
        self.module = make_cadirec(ITEMS_ONLY, max_distance=4).eval()
        state = {"norm.weight": 1 + wave(8, phase=5.0), "norm.bias": wave(8, phase=6.0)}
        state["distance"] = wave(8, 8, phase=7.0)
        for n, (place, out, inner) in enumerate([(0, 32, 8), (2, 8, 32)]):
            state[f"time.{place}.weight"] = wave(out, inner, phase=1.0 + n)
            state[f"time.{place}.bias"] = wave(out, phase=3.0 + n)
        for block in range(2):
            phase = 20.0 * (block + 1)
            # The authors' matrices, and then what stands where in their code.
            square = {"query": 0, "key": 1, "value": 2, "distance_key": 5, "distance_query": 6}
            biases = {"query": 3, "value": 4, "distance_query": 7, "output": 9}
            weights = {f"{name}.weight": wave(8, 8, phase=phase + n) for name, n in square.items()}
            weights |= {f"{name}.bias": wave(8, phase=phase + n) for name, n in biases.items()}
            weights |= {
                "output.weight": wave(8, 8, phase=phase + 8),
                "attention_norm.weight": 1 + wave(8, phase=phase + 10),
                "attention_norm.bias": wave(8, phase=phase + 11),
                "feed_forward.0.weight": wave(16, 8, phase=phase + 12),
                "feed_forward.0.bias": wave(16, phase=phase + 13),
                "feed_forward.2.weight": wave(8, 16, phase=phase + 14),
                "feed_forward.2.bias": wave(8, phase=phase + 15),
                "norm.weight": 1 + wave(8, phase=phase + 16),
                "norm.bias": wave(8, phase=phase + 17),
            }
            state |= {f"blocks.{block}.{name}": value for name, value in weights.items()}
        self.module.denoiser.load_state_dict(state)
        table = wave(12, 8, phase=10.0)
        self.recent = histories([3, 7, 2], [5, 1, 9, 4, 8, 6], table=table)
        # With these, rounding is over all 12 items.
        others = [[i for i in range(12) if i not in own] for own in ([3, 7, 2], [5, 1, 9, 4, 8, 6])]
        self.stranger = histories(*others, table=table)
        self.masked = torch.tensor([False, True, False, True, False, False, True, False, False])
        self.timesteps = torch.tensor([1, 1, 1, 500, 500, 500, 500, 500, 500])
        self.noise = wave(2, 6, 8, phase=30.0).flatten(0, 1)[[3, 4, 5, *range(6, 12)]]

    def noised(self) -> Tensor:
        return self.module.noised(
            self.recent.item, self.masked, noise=self.noise, timesteps=self.timesteps
        )


def close_to_golden(values: Tensor, name: str) -> None:
    expected = torch.tensor(GOLDEN_VECTORS[name])
    torch.testing.assert_close(values, expected, rtol=0, atol=2e-6)


@torch.no_grad()
def test_noise_denoiser_and_losses_equal_the_official_code():
    """Fails where a clean place is noised, or where a distance counts in the other direction."""
    official = Published()
    module, recent = official.module, official.recent
    x_t = official.noised()
    close_to_golden(x_t, "x_t")
    x_0 = module.denoiser(x_t, official.timesteps, recent)
    close_to_golden(x_0, "x_0")
    masked = torch.ones(9, dtype=torch.bool)
    error, _ = module.round(x_0, masked, recent, official.stranger, torch.arange(9))
    close_to_golden(torch.stack([error[1, 0], (error[3, 0] + error[6, 0]) / 2]), "rounding_loss")
    squared = (x_0 - recent.item).square().mean(dim=1)[official.masked].mean()
    close_to_golden(squared, "denoise_error")


def test_the_schedule_is_that_of_the_official_code():
    found = make_cadirec(ITEMS_ONLY).schedule.alphas_cumprod
    for timestep, expected in GOLDEN_VECTORS["alphas_cumprod"].items():
        assert found[int(timestep)].item() == pytest.approx(expected, rel=1e-5)


def test_the_contrastive_loss_equals_the_official_code():
    first, second = wave(3, 8, phase=40.0), wave(3, 8, phase=41.0)
    others = [torch.cat([v[torch.arange(3) != i] for v in (first, second)]) for i in range(3)]
    loss = contrastive_loss(
        first, second, torch.stack(others), torch.ones(3, 4, dtype=torch.bool), temperature=1.0
    )
    close_to_golden(loss.mean(), "info_nce")


@torch.no_grad()
def test_serving_is_the_encoder_alone(make_inputs, dims):
    module = make_cadirec(dims)
    inputs = make_inputs()
    plain = SasrecInterest(SasrecConfig(kind="sasrec", num_heads=2), dims)
    plain.load_state_dict(module.encoder.state_dict())
    trained = module(inputs).interest
    served = module.eval()(replace(inputs, stranger=None))
    assert not served.losses
    assert torch.equal(served.interest, plain.eval()(inputs).interest)
    assert torch.equal(served.interest, trained)


def test_what_is_not_masked_is_neither_noised_nor_replaced():
    """Fails with noise on every embedding, as in the released code."""
    official = Published()
    kept, recent = ~official.masked, official.recent
    x_t = official.noised()
    assert torch.equal(x_t[kept], recent.item[kept])
    assert not (x_t == recent.item)[official.masked].any()
    everything = torch.ones(9, dtype=torch.bool)
    _, chosen = official.module.round(x_t, everything, recent, official.stranger, torch.arange(9))
    items = torch.cat([official.stranger.item, recent.item])
    for place, view in zip(
        chosen.unbind(1), views(recent, official.stranger, chosen, official.masked), strict=True
    ):
        assert torch.equal(view.item[kept], recent.item[kept])
        assert torch.equal(view.item[official.masked], items[place][official.masked])


def test_a_masked_behaviour_is_restored_from_both_sides(dims):
    """Fails with a causal denoiser. Only its own noised self and the others' clean ones count."""
    module = make_cadirec(ITEMS_ONLY)
    recent = histories([3, 7, 2], [5, 1, 9])
    x_t = recent.item.clone().requires_grad_()
    x_0 = module.denoiser(x_t, torch.full((6,), 400), recent)
    (x_0[1] * torch.randn(8)).sum().backward()
    assert x_t.grad is not None
    assert x_t.grad[:3].abs().sum(dim=1).gt(0).all() and not x_t.grad[3:].any()


def test_rounding_counts_every_item_once():
    """Closed form: vectors of zero score everything 0. Fails where a repeated item counts twice,
    or where padding is an item."""
    module = make_cadirec(ITEMS_ONLY)
    recent = histories([3, 7, 3, 3], [5, 5], [9])
    stranger = histories([7, 8, 8], [1, 2, 3, 4], [])
    zeros = torch.zeros(7, 8)
    masked = torch.ones(7, dtype=torch.bool)
    error, chosen = module.round(zeros, masked, recent, stranger, torch.arange(7))
    expected = [math.log(3)] * 4 + [math.log(5)] * 2 + [0.0]
    assert error.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    offered = [{3, 7, 8}] * 4 + [{1, 2, 3, 4, 5}] * 2 + [{9}]
    codes = torch.cat([stranger.index.item_id, recent.index.item_id])
    for place, allowed in zip(chosen, offered, strict=True):
        assert set(codes[place].tolist()) <= allowed


def test_a_view_takes_the_likeliest_items_and_each_of_them():
    module = make_cadirec(ITEMS_ONLY, num_alternatives=2)
    table = torch.zeros(60, 8)
    table[:, 0] = torch.arange(60.0)
    recent = histories([3, 7, 2] * 16, table=table)
    stranger = histories([9, 4, 8], table=table)
    codes = torch.cat([stranger.index.item_id, recent.index.item_id])
    masked = torch.ones(48, dtype=torch.bool)
    _, chosen = module.round(torch.ones(48, 8), masked, recent, stranger, torch.arange(48))
    first, second = codes[chosen].unbind(1)
    assert set(first.tolist()) == set(second.tolist()) == {9, 8}
    assert 0 < (first == second).sum() < 48


def test_what_is_not_masked_does_not_change_how_the_others_are_rounded():
    module = make_cadirec(ITEMS_ONLY)
    recent = histories([3, 7, 3, 3], [5, 5, 2, 8, 6], [9])
    stranger = histories([7, 8, 8], [1, 2, 3, 4], [])
    x_0, key = torch.randn(10, 8), torch.arange(10)
    masked = torch.tensor([True, False, True, False, False, True, False, False, False, False])
    expected = module.round(x_0, torch.ones_like(masked), recent, stranger, key)
    found = module.round(x_0, masked, recent, stranger, key)
    for some, everything in zip(found, expected, strict=True):
        torch.testing.assert_close(some[masked], everything[masked])


def test_the_share_of_masked_behaviours_is_the_mask_rate():
    module = make_cadirec(ITEMS_ONLY, mask_rate=0.2, max_length=40)
    recent = histories([1] * 2000)
    masked = module.masked(recent, torch.arange(2000))
    assert not masked[:-40].any()
    module = make_cadirec(ITEMS_ONLY, mask_rate=0.2, max_length=2000)
    assert module.masked(recent, torch.arange(2000)).float().mean() == pytest.approx(0.2, abs=0.03)


def test_views_train_the_encoder_and_not_the_embeddings(make_inputs, dims):
    module = make_cadirec(dims, mask_rate=0.5)
    inputs = make_inputs(requires_grad=True)
    module(inputs).losses["contrastive_loss"].sum().backward()
    for sequence in (inputs.recent, inputs.stranger):
        assert all(x.grad is None for x in (sequence.item, sequence.category, sequence.action))
    assert all(p.grad is None for p in module.denoiser.parameters())
    assert module.encoder.position.grad is not None


def test_negatives_are_the_strangers_items_and_never_own_ones():
    """Fails with negatives of the batch: neither other sequences nor the order of them matter."""
    recent, stranger = histories([1, 2, 3, 4], [5], []), histories([2, 7, 8, 9], [], [3])
    codes, seen = stranger.index.item_id, set()
    for key in range(100):
        key = torch.arange(5) + 1000 * key
        beside = next_behaviours_beside(recent.index, stranger.index, key=key, length=50)
        drawn = codes[beside.negative[:4]]
        assert (beside.weight[:3] == (drawn[:3] != 2)).all()
        assert beside.weight[3:].tolist() == [0, 0] and beside.negative[4] == len(codes)
        assert beside.positive[:3].tolist() == [1, 2, 3]
        seen |= set(drawn.tolist())
    assert seen == {2, 7, 8, 9}


def test_a_strangers_most_recent_behaviours_are_read():
    stranger = histories([1, 2, 3, 4], [], [3]).index
    places = stranger_places(stranger, torch.tensor([2, 0, 1]), count=3)
    assert places.tolist() == [[5, 5, 4], [1, 2, 3], [5, 5, 5]]


def test_a_history_without_a_stranger_has_no_negatives(make_inputs, dims):
    module = make_cadirec(dims, mask_rate=0.5)
    inputs = make_inputs()
    nobody = make_inputs(lengths=[0, 0, 0, 0]).stranger
    losses = module(replace(inputs, stranger=nobody)).losses
    assert not losses["contrastive_loss"].any() and not losses["next_item_loss"].any()
    assert losses["rounding_loss"].any()


def test_all_impressions_of_a_request_have_its_losses_in_any_batch(make_inputs, dims):
    """Fails where draws are named by an impression: a request may be split between ranks."""
    module = make_cadirec(dims, mask_rate=0.5, denoise_loss_weight=0.1)
    inputs = make_inputs()
    request = inputs.recent.index.sequence
    key = impression_key(1000 + request, inputs.item_id, 7)
    inputs = replace(inputs, key=key)
    keys = sequence_keys(key, inputs.item_id, inputs.recent.index)
    assert len(keys[:4].unique()) == 4
    losses, epoch = module(inputs).losses, replace(inputs, key=key + 1)
    for name, loss in losses.items():
        assert torch.equal(loss, loss[inputs.recent.index.first_impression[request]])
        for rows in (torch.tensor([7, 2]), torch.tensor([11]), torch.tensor([3, 6])):
            alone = module(take(inputs, rows)).losses[name]
            torch.testing.assert_close(alone, loss[rows], rtol=1e-4, atol=1e-6)
        assert not torch.equal(module(epoch).losses[name], loss)


def test_heads_must_divide_the_embedding_dim(dims):
    with pytest.raises(ConfigError, match=r"denoiser_heads = 3: must divide model\.embedding_dim"):
        make_cadirec(dims, denoiser_heads=3)
    with pytest.raises(ConfigError, match=r"num_heads = 3: must divide model\.embedding_dim"):
        make_cadirec(dims, num_heads=3)
