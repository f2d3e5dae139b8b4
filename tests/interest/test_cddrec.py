"""CDDRec: parity with the authors' code, a decoder that sees no state, one call to serve."""

import json
import math
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cdp_torchrec.config import ConfigError
from cdp_torchrec.interest import CddrecConfig, CddrecInterest, InterestDims
from cdp_torchrec.interest.cddrec import ranking_loss, step_contrast
from cdp_torchrec.interest.recent_sequence import keep_recent, last_state, recency
from cdp_torchrec.interest.reordering import Reordering
from cdp_torchrec.interest.sequence_rows import sequence_keys
from cdp_torchrec.interest.stranger import next_behaviours_beside
from cdp_torchrec.keyed_random import Stream, further_key, keyed_normal
from tests.golden_wave import wave
from tests.gradients import in_float64
from tests.interest.sequences import items_only
from tests.paths import GOLDEN

VECTORS = json.loads((GOLDEN / "cddrec.json").read_text())


@pytest.fixture
def make_cddrec(dims):
    def make(dims: InterestDims = dims, **settings: Any) -> CddrecInterest:
        return CddrecInterest(CddrecConfig.model_validate({"kind": "cddrec"} | settings), dims)

    return make


def official(name: str, *shape: int) -> Tensor:
    """A parameter of the authors' model, as the golden vectors were made with."""
    values = wave(*shape, phase=VECTORS["phases"][name])
    return 1 + values if "norm" in name.lower() and name.endswith("weight") else values


@pytest.fixture
def golden_module(make_cddrec) -> CddrecInterest:
    """Ours with the authors' parameters; attention to one token and value biases are folded."""
    nothing = InterestDims(user=0, query=0, item=8, item_attributes=0, context=0, scene=0)
    module = make_cddrec(nothing, max_length=6, num_heads=2).eval()
    encoder, decoder = "conditional_encoder.layer.0.", "decoder."
    state = {"position": official("position_embeddings.weight", 6, 8)}

    def norm(ours: str, theirs: str) -> None:
        state[f"{ours}.weight"] = official(f"{theirs}.weight", 8)
        state[f"{ours}.bias"] = official(f"{theirs}.bias", 8)

    def linear(ours: str, theirs: str, *shape: int) -> None:
        state[f"{ours}.weight"] = official(f"{theirs}.weight", *shape)
        state[f"{ours}.bias"] = official(f"{theirs}.bias", shape[0])

    norm("norm", "LayerNorm")
    linear("blocks.0.attention.query", f"{encoder}attention.query", 8, 8)
    parts = [official(f"{encoder}attention.{name}.weight", 8, 8) for name in ("key", "value")]
    state["blocks.0.attention.key_value.weight"] = torch.cat(parts)
    out = official(f"{encoder}attention.dense.weight", 8, 8)
    value_bias = official(f"{encoder}attention.value.bias", 8)
    state["blocks.0.attention.output.weight"] = out
    state["blocks.0.attention.output.bias"] = out @ value_bias + official(
        f"{encoder}attention.dense.bias", 8
    )
    norm("blocks.0.attention.norm", f"{encoder}attention.LayerNorm")
    linear("blocks.0.feed_forward.0", f"{encoder}intermediate.dense_1", 32, 8)
    linear("blocks.0.feed_forward.2", f"{encoder}intermediate.dense_2", 8, 32)
    norm("blocks.0.norm", f"{encoder}intermediate.LayerNorm")

    folded = {}
    for name in ("self_attn", "multihead_attn"):
        weight = official(f"{decoder}{name}.in_proj_weight", 24, 8)
        bias = official(f"{decoder}{name}.in_proj_bias", 24)
        out = official(f"{decoder}{name}.out_proj.weight", 8, 8)
        folded[name] = (weight, bias, out, official(f"{decoder}{name}.out_proj.bias", 8))
    weight, bias, out, out_bias = folded["self_attn"]
    state["decoder.attention.query.weight"], state["decoder.attention.query.bias"] = (
        weight[:8],
        bias[:8],
    )
    state["decoder.attention.key_value.weight"] = weight[8:]
    state["decoder.attention.output.weight"] = out
    state["decoder.attention.output.bias"] = out @ bias[16:] + out_bias
    weight, bias, out, out_bias = folded["multihead_attn"]
    times = official("time_embeddings.weight", 20, 8)
    state["decoder.time"] = (times @ weight[16:].t() + bias[16:]) @ out.t() + out_bias
    for ours, theirs in {"attention.norm": 1, "memory_norm": 2, "norm": 3}.items():
        norm(f"decoder.{ours}", f"decoder.norm{theirs}")
    linear("decoder.feed_forward.0", "decoder.linear1", 8, 8)
    linear("decoder.feed_forward.2", "decoder.linear2", 8, 8)
    module.load_state_dict(state)
    return module


@torch.no_grad()
def test_conditions_and_decoded_states_equal_the_official_code(golden_module):
    """The authors' decoder layer, along the sequence and causal: they pass it the batch there."""
    sequences = [[3, 7, 2], [5, 1, 9, 4, 4, 8]]
    table = official("item_embeddings.weight", 12, 8)
    recent = items_only(table[[*chain(*sequences)]], [3, 6])
    states = golden_module.encode(recent)
    torch.testing.assert_close(states, torch.tensor(VECTORS["states"]), rtol=1e-5, atol=1e-5)
    decoder = golden_module.decoder
    attended = decoder.attend(states, recent)
    for step, expected in VECTORS["decoded"].items():
        decoded = decoder(attended, decoder.time[int(step)])
        torch.testing.assert_close(decoded, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_the_losses_of_a_step_equal_the_official_code():
    sample, target, negative = (wave(9, 8, phase=phase) for phase in (50.0, 51.0, 52.0))
    losses = ranking_loss(sample.unsqueeze(1), target.unsqueeze(1), negative)
    assert losses.mean().item() == pytest.approx(VECTORS["cross_entropy"], abs=1e-6)
    # Theirs tells a vector from both views of the other pair.
    pairs = functional.normalize(
        torch.stack([wave(2, 8, phase=53.0), wave(2, 8, phase=54.0)]), dim=2
    )
    first, second = pairs.unbind(0)
    beside = pairs.transpose(0, 1).flip(0)
    loss = step_contrast(
        first.view(2, 1, 1, 8),
        second.view(2, 1, 1, 8),
        beside.unsqueeze(1),
        beside.unsqueeze(1),
        torch.ones(2, 2, dtype=torch.bool),
        temperature=0.5,
    )
    assert loss.mean().item() == pytest.approx(VECTORS["contrast"], abs=1e-6)


def test_the_schedule_keeps_nearly_all_signal(make_cddrec):
    module = make_cddrec()
    expected = math.prod(1 - (1e-4 + 1.9e-3 * n / 19) for n in range(20))
    assert expected == pytest.approx(0.979, abs=5e-4)
    assert module.schedule.alphas_cumprod[20].item() == pytest.approx(expected, abs=1e-6)
    assert VECTORS["alphas_cumprod"] == pytest.approx(expected, abs=1e-9)
    variances = module.decoder.posterior_stds.square()
    expected = torch.tensor(VECTORS["posterior_variance"])
    torch.testing.assert_close(variances, expected, rtol=1e-4, atol=1e-9)
    assert variances[0] == 0


def test_serving_is_one_call_at_the_last_step_without_noise(make_cddrec, make_inputs):
    """Fails where the posterior's noise is added, or where all steps run."""
    module, inputs = make_cddrec().eval(), make_inputs()
    calls = []
    module.decoder.register_forward_hook(lambda _, given, result: calls.append(given[1]))
    interest = module(inputs).interest
    assert torch.equal(module(inputs).interest, interest)
    assert len(calls) == 2 and all(torch.equal(time, module.decoder.time[0]) for time in calls)
    other_key = module(replace(inputs, key=inputs.key + 1)).interest
    assert torch.equal(other_key, interest)
    recent = keep_recent(inputs.recent, 20)
    states = module.decoder.attend(module.encode(recent), recent)
    expected = module.decoder(last_state(states, recent.index), module.decoder.time[0])
    empty = recent.index.lengths[recent.index.sequence] == 0
    torch.testing.assert_close(interest[~empty], expected[~empty])
    assert empty.any() and not interest[empty].any()
    torch.testing.assert_close(module.train()(inputs).interest, interest)


def test_the_denoiser_is_blind_to_the_state_unless_told_otherwise(make_cddrec):
    attended, keys = torch.randn(5, 8).double(), torch.arange(5)
    for sees in ("condition", "condition_and_state"):
        decoder = make_cddrec(denoiser_sees=sees).double().decoder
        stds = decoder.posterior_stds.unsqueeze(1)
        means = []
        for key in (keys, keys + 100):
            noise = keyed_normal(key, 8, Stream.START_NOISE).double().unsqueeze(1)
            means.append(decoder.samples(attended, key) - stds * noise)
        # Every step's mean: of the condition and the time alone, or of the noise before it, too.
        same = (means[0] - means[1]).abs().amax(dim=(0, 2)) < 1e-6
        assert same.all() if sees == "condition" else not same.any()


def test_a_decoder_that_sees_the_state_serves_with_all_steps(make_cddrec, make_inputs):
    module, inputs = make_cddrec(denoiser_sees="condition_and_state").eval(), make_inputs()
    calls = []
    module.decoder.register_forward_hook(lambda *given: calls.append(given))
    interest = module(inputs).interest
    assert len(calls) == 20
    assert torch.equal(module(inputs).interest, interest)


def test_what_ranks_the_next_item_has_not_seen_it(make_cddrec, make_inputs, dims):
    """Fails where the decoder's attention has no mask, as that of its layer has none."""
    module = make_cddrec()
    recent = make_inputs(requires_grad=True).recent
    states = module.decoder.attend(module.encode(recent), recent)
    # The third behaviour of the history of 8. A plain sum of a layer norm is constant.
    (states[5] * torch.randn(dims.item)).sum().backward()
    gradient = recent.item.grad
    assert gradient[3:6].abs().sum(dim=1).gt(0).all()
    assert not gradient[6:].any() and not gradient[:3].any()


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_a_view_has_the_same_behaviours_of_which_a_window_is_in_another_order(share):
    lengths = [0, 1, 7, 12, 30]
    recent = items_only(torch.arange(50.0).unsqueeze(1), lengths)
    keys, key = torch.arange(5) * 77, torch.arange(50) * 5
    view = Reordering.of(recent.index, keys=keys, key=key, share=share, length=20)
    found = view.apply(recent).item.flatten().long()
    start = 0
    for length in lengths:
        own = torch.arange(start, start + length)
        theirs = found[start : start + length]
        assert torch.equal(theirs.sort().values, own)
        moved = (theirs != own).nonzero().flatten()
        if len(moved):
            assert moved.max() - moved.min() < math.floor(share * min(length, 20))
            assert moved.min() >= length - 20
        for place in range(length - 1):
            # What a state after this place sees, and whether the next behaviour is among it.
            unlike = set(theirs[: place + 1].tolist()) != set(own[: place + 1].tolist())
            assert view.may_see_next[start + place] or not unlike
        start += length
    assert bool(view.may_see_next.any()) == (share > 0)
    assert torch.equal(found, torch.arange(50)) == (share == 0)


def test_every_step_ranks_with_the_inverse_of_its_number(make_cddrec, make_inputs):
    """Fails where the next item is clean, steps weigh the same, or a view ranks what it saw."""
    module = make_cddrec(schedule={"num_train_timesteps": 3, "beta_end": 0.5}).double()
    inputs = in_float64(make_inputs())
    recent, stranger = (keep_recent(x, 20) for x in (inputs.recent, inputs.stranger))
    index = recent.index
    keys = sequence_keys(inputs.key, inputs.item_id, index)
    key = keys[index.owner] + recency(index)
    reordering = Reordering.of(index, keys=keys, key=key, share=0.6, length=20)
    following = next_behaviours_beside(index, stranger.index, key=key, length=20)
    views = []
    for number, sequence in enumerate((recent, reordering.apply(recent))):
        attended = module.decoder.attend(module.encode(sequence), sequence)
        views.append(module.decoder.samples(attended, further_key(key, number)))
    noise = keyed_normal(further_key(key, 2), 8, Stream.TRAINING_NOISE).double()
    totals = torch.zeros(len(index.lengths), 2).double()
    counts = torch.zeros(len(index.lengths), 2).double()
    for place in range(len(index.owner)):
        if not following.weight[place]:
            continue
        owner = index.owner[place]
        x_0 = recent.item[following.positive[place]]
        other = stranger.item[following.negative[place]]
        for number, view in enumerate(views):
            if number == 1 and reordering.may_see_next[place]:
                continue
            counts[owner, number] += 1
            for step in range(3):
                signal, sigma = module.schedule.scales(step + 1)
                x_t = signal * x_0 + sigma * noise[place]
                positive, negative = view[place, step] @ x_t, view[place, step] @ other
                loss = functional.softplus(-positive) + functional.softplus(negative)
                totals[owner, number] += loss / (step + 1)
    assert counts[:, 0].sum() > counts[:, 1].sum() > 0
    expected = (totals / counts.clamp(min=1)).sum(dim=1)[index.sequence]
    torch.testing.assert_close(
        module(inputs).losses["ranking_loss"], expected, rtol=1e-6, atol=1e-7
    )


def test_a_contrast_tells_from_strangers_that_are_there():
    generator = torch.Generator().manual_seed(1)
    first, second = (
        functional.normalize(torch.randn(2, 3, 4, 6, generator=generator), dim=3) for _ in range(2)
    )
    others = functional.normalize(torch.randn(2, 3, 5, 6, generator=generator), dim=3)
    mask = torch.tensor([[True, False, True, False, False], [False] * 5])
    loss = step_contrast(first, second, others, others, mask, temperature=0.5)
    assert loss.shape == (2, 3, 4) and not loss[1].any()
    anchor, partner = first[0, 1, 2], second[0, 1, 2]
    expected = 0.0
    for a in (anchor, partner):
        scores = torch.stack([anchor @ partner, a @ others[0, 1, 0], a @ others[0, 1, 2]]) / 0.5
        expected = expected - scores.log_softmax(dim=0)[0] / 2
    torch.testing.assert_close(loss[0, 1, 2], expected)


def test_heads_that_do_not_divide_the_width_are_named(make_cddrec):
    with pytest.raises(ConfigError, match="num_heads = 3: must divide"):
        make_cddrec(num_heads=3)
