"""The contract of every interest module that the project ships, and of its ablations."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from cdp_torchrec.data.history import sequence_index
from cdp_torchrec.interest import InterestInput
from tests.gradients import idle_parameters, in_float64
from tests.interest.sequences import padded, take
from tests.interest.variants import PRESETS, VARIANTS, WITH_HISTORY, auxiliary, segments

LENGTHS = [0, 3, 12, 40]
COMPLETE: tuple[str, ...] = ()
READ_BY_DAYPART = [
    v
    for v in VARIANTS
    if v[0] in [f"interest/{name}" for name in ("pooled", "cdp", "cdp_paper")]
    or (v[0] == "interest/condition_mlp" and "pooling=mean" in v)
]
BARE = ("user", "query", "context", "scene", "category", "action", "domains")
LACKING = [
    ("user",),
    ("query",),
    ("item_attributes", "category"),
    ("category",),
    ("action",),
    ("context",),
    ("scene",),
    ("domains",),
]
TOLD_FROM_THE_BATCH = [
    v
    for v in VARIANTS
    if v[0] == "interest/dien"
    or "next_item_loss_weight=0.1" in v
    or (v[0] == "interest/diffumin" and "contrastive_loss_weight=0.0" not in v)
]
"""Negatives of DIEN, SASRec and DiffuMIN are other behaviours or interests of the batch."""
CASES = [
    *[(variant, lacking) for variant in VARIANTS for lacking in (COMPLETE, BARE)],
    *[(variant, lacking) for variant in WITH_HISTORY for lacking in LACKING],
]


@pytest.mark.parametrize(
    ("variant", "lacking"),
    CASES,
    ids=["+".join([*v, *(f"no-{role}" for role in roles)]) for v, roles in CASES],
)
def test_output_is_as_declared_and_gradients_reach_every_parameter(
    make_module, make_inputs, dims, variant, lacking
):
    check_contract(make_module, make_inputs, replace(dims, **dict.fromkeys(lacking, 0)), variant)


@pytest.mark.parametrize("variant", WITH_HISTORY, ids="+".join)
def test_what_a_module_reads_and_was_not_given_is_named(make_module, make_inputs, variant):
    """Fails where whoever calls a module by itself gets an AssertionError without a word."""
    nothing = dict.fromkeys(("pool", "daypart", "part", "whole", "gated", "recent", "stranger"))
    with pytest.raises((AssertionError, ValueError), match=r"InterestInput\.\w+ is missing"):
        make_module(*variant)(replace(make_inputs(), **nothing))


@pytest.mark.parametrize("variant", READ_BY_DAYPART, ids="+".join)
def test_a_pooled_history_by_the_time_of_day_keeps_the_contract(
    make_module, make_inputs, dims, variant
):
    check_contract(make_module, make_inputs, replace(dims, dayparts=3), variant)


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_rows_may_be_grouped_in_any_blocks(make_module, make_inputs, dims, variant, monkeypatch):
    """Sequences and candidates are grouped apart: a short one may stand among long ones."""
    module = make_module(*variant, dims=dims).double()

    def computed():
        inputs = make_inputs(dims, num_segments=segments(module), lengths=LENGTHS)
        output = module(in_float64(replace(inputs, progress=torch.ones(12))))
        return {"interest": output.interest} | auxiliary(output)

    def in_two(length, width):
        rows = np.arange(len(length))
        # Of the 3 sequences with behaviours the shortest alone, of the 4 of candidates every other.
        first = rows < 1 if len(rows) == 3 else rows % 2 == 0
        return [rows[first], rows[~first]]

    expected = computed()  # in a block for each length
    monkeypatch.setattr(sequence_index, "_alike", in_two)
    torch.testing.assert_close(computed(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_a_module_says_whether_it_reads_the_time_of_day(
    make_module, make_inputs, load_interest, dims, variant
):
    """The part of the day is in what a behaviour has beside item, category and age, or in pools."""
    dims = replace(dims, dayparts=3)
    module = make_module(*variant, dims=dims).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    inputs = make_inputs(dims, num_segments=segments(module), lengths=LENGTHS)
    otherwise = replace(
        inputs,
        daypart=replace(inputs.daypart, sums=inputs.daypart.sums + 1.0),
        gated=replace(inputs.gated, action=inputs.gated.action + torch.randn(dims.action)),
        recent=replace(inputs.recent, action=inputs.recent.action + torch.randn(dims.action)),
    )
    changes = not torch.equal(module(inputs).interest, module(otherwise).interest)
    assert load_interest(*variant).reads_time_of_day == changes


def check_contract(make_module, make_inputs, dims, variant):
    module = make_module(*variant, dims=dims).double()
    inputs = in_float64(make_inputs(dims, num_segments=segments(module), lengths=LENGTHS))
    output = module(inputs)
    assert output.interest.shape == (12, module.interest_dim)
    assert output.interest.isfinite().all()
    losses = auxiliary(output)
    assert set(losses) == set(module.loss_weights)
    assert all(loss.shape == (12,) and loss.isfinite().all() for loss in losses.values())
    # A random projection: the sum of a layer norm is constant.
    total = (output.interest * torch.randn_like(output.interest)).sum()
    assert idle_parameters(module, total + sum(loss.sum() for loss in losses.values())) == []
    served = module.eval()(inputs)
    assert served.interest.shape == (12, module.interest_dim)
    assert served.interest.isfinite().all()
    assert auxiliary(served) == {}


@pytest.mark.parametrize(
    "preset", ["pooled", "condition_mlp", "cdp", "cdp_timestep", "diff4rec", "diffumin"]
)
def test_what_nobody_reads_is_not_computed_and_changes_nothing(make_module, make_inputs, preset):
    module = make_module(f"interest/{preset}")
    inputs = make_inputs(num_segments=segments(module), lengths=LENGTHS)
    read = module(inputs)
    module.monitored = False
    unread = module(inputs)
    assert read.monitors and not unread.monitors
    assert torch.equal(unread.interest, read.interest)
    losses, expected = auxiliary(unread), auxiliary(read)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[name], expected[name]) for name in losses)


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_histories_that_are_all_empty_give_finite_gradients(make_module, make_inputs, variant):
    module = make_module(*variant)
    inputs = make_inputs(num_segments=segments(module), lengths=[0, 0], requires_grad=True)
    assert inputs.pool is not None and not inputs.pool.lengths.any()
    output = module(inputs)
    (output.interest.sum() + sum(loss.sum() for loss in auxiliary(output).values())).backward()
    assert output.interest.isfinite().all()
    assert all(value.isfinite().all() for value in output.monitors.values())
    gradients = [p.grad for p in module.parameters()] + [inputs.item.grad]
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_a_score_does_not_depend_on_the_rest_of_the_batch(make_module, make_inputs, variant):
    module = make_module(*variant).double().eval()
    inputs = in_float64(make_inputs(num_segments=segments(module), lengths=LENGTHS))
    interest = module(inputs).interest
    assert torch.equal(module(inputs).interest, interest)
    for rows in (torch.arange(12).flip(0), torch.tensor([5]), torch.tensor([7, 2, 0, 3])):
        alone = module(in_float64(take(inputs, rows))).interest
        torch.testing.assert_close(alone, interest[rows], rtol=1e-9, atol=1e-12)
    longer = module(in_float64(in_longer_rows(inputs))).interest
    torch.testing.assert_close(longer, interest, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "variant",
    [v for v in VARIANTS if v not in TOLD_FROM_THE_BATCH],
    ids="+".join,
)
def test_training_losses_do_not_depend_on_the_rest_of_the_batch(make_module, make_inputs, variant):
    """Randomness is a function of the impression's key; what takes its negatives from the batch is
    left out."""
    module = make_module(*variant).double()
    inputs = in_float64(make_inputs(num_segments=segments(module), lengths=LENGTHS))
    rows = torch.tensor([1, 4, 9])
    losses, alone = auxiliary(module(inputs)), auxiliary(module(in_float64(take(inputs, rows))))
    for name, loss in losses.items():
        torch.testing.assert_close(alone[name], loss[rows], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("preset", ["interest/none", "interest/counts"])
def test_none_adds_nothing(make_module, make_inputs, preset):
    module = make_module(preset)
    assert module.interest_dim == 0
    assert module(make_inputs()).interest.shape == (12, 0)


def test_cdp_and_its_floors_hand_the_same_parts_to_the_tower(load_interest):
    cdp, condition_mlp = (
        load_interest("interest/cdp_timestep"),
        load_interest("interest/condition_mlp"),
    )
    pooled = load_interest("interest/pooled_attention")
    for key in ("emit", "pooling", "attention", "latent_norm"):
        assert getattr(pooled, key) == getattr(condition_mlp, key) == getattr(cdp, key)
    assert condition_mlp.condition == cdp.condition
    assert condition_mlp.network == cdp.denoiser


def test_a_preset_leaves_nothing_of_the_preset_below_it(load_interest):
    for below, preset in permutations(PRESETS, 2):
        layered = load_interest(f"interest/{below}", f"interest/{preset}")
        assert layered == load_interest(f"interest/{preset}")


def in_longer_rows(inputs: InterestInput) -> InterestInput:
    assert inputs.gated is not None and inputs.recent is not None
    return replace(inputs, gated=padded(inputs.gated, 8), recent=padded(inputs.recent, 8))
