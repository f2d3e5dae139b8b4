"""CDP with a clean target: completing a part of the history, told how much of it there is."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from cdp_torchrec.config import ConfigError
from cdp_torchrec.interest import CdpConfig, GatedPool
from cdp_torchrec.interest.pooling import normalise
from tests.gradients import idle, in_float64
from tests.interest.test_cdp import ROLES, gradients

PRESET = "interest/cdp"


@pytest.mark.parametrize("num_inference_steps", [1, 4])
def test_it_starts_as_the_pooled_history(make_module, make_inputs, num_inference_steps):
    cdp = make_module(PRESET, f"num_inference_steps={num_inference_steps}", perturb=False)
    pooled = make_module("interest/pooled", perturb=False)
    pooled.pooling.load_state_dict(cdp.pooling.state_dict())
    inputs = make_inputs()
    torch.testing.assert_close(cdp(inputs).interest, pooled(inputs).interest, rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_error_in_the_whole_as_seen_from_a_part(make_module, make_inputs):
    module, inputs = make_module(PRESET), make_inputs(batch=40)
    count, whole = inputs.part.lengths.sum(dim=1), inputs.pool.lengths.sum(dim=1)
    assert ((count > 0) & (count < whole)).sum() > 10
    assert (count == 0).any() and ((count == whole) & (count > 0)).any()
    x = normalise(inputs.part.sums[:, 0] / count.clamp(min=1).unsqueeze(1), "layernorm")
    modulation = module.denoiser.modulation(module.condition(inputs).condition)
    predicted = module.denoiser.predict(x, count, modulation)
    target = module.pooling(inputs).latent
    useful = (count > 0) & (count < whole)
    expected = (predicted - target).square().mean(dim=1) * useful
    output = module(inputs)
    torch.testing.assert_close(output.losses["noise_loss"], expected)
    identity = ((x - target).square().mean(dim=1) * useful).mean()
    torch.testing.assert_close(output.monitors["identity_loss"], identity)


def test_a_part_is_read_by_the_time_of_day_as_the_whole_is(make_module, make_inputs, dims):
    dims = replace(dims, dayparts=3)
    module, inputs = make_module(PRESET, dims=dims), make_inputs(dims, batch=40)
    x, count = module.pooling.of_part(inputs)
    modulation = module.denoiser.modulation(module.condition(inputs).condition)
    error = module.denoiser.predict(x, count, modulation) - module.pooling(inputs).latent
    useful = (count > 0) & (count < inputs.pool.lengths.sum(dim=1))
    assert useful.sum() > 10
    found = module(inputs).losses["noise_loss"]
    torch.testing.assert_close(found, error.square().mean(dim=1) * useful)
    one = inputs.part.sums.sum(dim=1, keepdim=True), inputs.part.lengths.sum(dim=1, keepdim=True)
    blind = make_module(PRESET).pooling.of_part(replace(inputs, part=GatedPool(*one)))[0]
    assert (x - blind)[useful].abs().amax(dim=1).min() > 1e-4


def test_a_fresh_denoiser_loses_what_the_identity_does(make_module, make_inputs):
    output = make_module(PRESET, perturb=False)(make_inputs())
    loss = output.losses["noise_loss"].mean()
    torch.testing.assert_close(loss, output.monitors["identity_loss"])
    assert loss > 0


@pytest.mark.parametrize("recon_detach", ["true", "false"])
def test_the_loss_trains_denoiser_and_experts_but_no_latent(make_module, make_inputs, recon_detach):
    module = make_module(PRESET, f"recon_detach={recon_detach}").double()
    inputs = in_float64(make_inputs(requires_grad=True))
    loss = module(inputs).losses["noise_loss"].sum()
    of = {"pool": inputs.pool.sums, "part": inputs.part.sums}
    of |= {role: getattr(inputs, role) for role in ROLES}
    of |= dict(module.named_parameters())
    moved = {name for name in of if name not in idle(gradients(loss, of))}
    assert not moved & {"pool", "part", "item", "pooling.null_latent", "pooling.mean.log_weights"}
    assert any(name.startswith("denoiser.") for name in moved)
    trains_experts = {"query", "user", "context", "scene"} <= moved
    assert trains_experts == (recon_detach == "false")
    assert any(name.startswith("condition.") for name in moved) == trains_experts


def test_serving_sees_no_part_and_computes_what_training_does(make_module, make_inputs):
    module, inputs = make_module(PRESET, "num_inference_steps=2"), make_inputs()
    trained = module.train()(inputs).interest
    served = module.eval()(replace(inputs, part=None))
    assert torch.equal(served.interest, trained)
    assert served.losses == served.monitors == {}


def test_the_denoiser_knows_how_many_behaviours_there_are(make_module, make_inputs):
    module, inputs = make_module(PRESET).eval(), make_inputs()
    pool = inputs.pool
    # The same mean of ten times as many behaviours.
    more = replace(inputs, pool=GatedPool(sums=pool.sums * 10, lengths=pool.lengths * 10))
    torch.testing.assert_close(module.pooling(more).latent, module.pooling(inputs).latent)
    present = pool.lengths.sum(dim=1) > 0
    shift = (module(more).interest - module(inputs).interest).abs().amax(dim=1)
    assert (shift[present] > 1e-3).all()


def test_the_gain_multiplies_the_interest_by_the_context(make_module, make_inputs):
    module, inputs = make_module(PRESET, 'emit=["interest"]').eval(), make_inputs()
    gain = module.gain(inputs)
    assert gain.std(dim=0).min() > 1e-3
    found = module(inputs).interest
    module.gain = None
    torch.testing.assert_close(found, module(inputs).interest * gain)


def test_without_a_step_the_gain_acts_on_the_pooled_history(make_module, make_inputs):
    module = make_module(PRESET, "ablation/no_steps", 'emit=["interest"]')
    inputs = make_inputs()
    output = module(inputs)
    expected = module.pooling(inputs).latent * module.gain(inputs)
    assert torch.equal(output.interest, expected)
    assert output.losses == {}


@pytest.mark.parametrize(
    ("layers", "roles"),
    [
        ([], ("query", "context", "scene")),
        (["ablation/no_collaborative"], ("context", "scene")),
        (["ablation/no_context_scene"], ("query",)),
        (["ablation/no_condition"], None),
        (["condition.gain_dim=0"], None),
    ],
)
def test_an_ablation_takes_its_inputs_from_the_gain_too(make_module, layers, roles):
    gain = make_module(PRESET, *layers).gain
    assert (None if gain is None else gain.roles) == roles


def test_monitors_tell_whether_the_context_matters_and_the_latent_moves(make_module, make_inputs):
    inputs = make_inputs()
    fresh = make_module(PRESET, perturb=False)(inputs).monitors
    assert {n: float(fresh[n]) for n in ("gain_shift", "gain_spread", "relative_shift")} == {
        "gain_shift": 0.0,
        "gain_spread": 0.0,
        "relative_shift": 0.0,
    }
    module = make_module(PRESET)
    monitors = module(inputs).monitors
    gain = module.gain(inputs)
    spread = gain.var(dim=0, correction=0).mean().sqrt()
    torch.testing.assert_close(monitors["gain_spread"], spread.detach())
    weights = module.condition(inputs).gate_weights
    spread = weights.var(dim=0, correction=0).mean().sqrt()
    torch.testing.assert_close(monitors["gate_spread"], spread.detach())
    assert monitors["relative_shift"] > 0
    assert "start_snr" not in monitors


OTHERS = "condition.user_role=user_and_other_categories"


def test_the_condition_may_see_behaviours_in_other_categories_and_those_alone(
    make_module, make_inputs
):
    inputs = make_inputs()
    pool, whole = inputs.pool, inputs.whole
    more = replace(inputs, whole=GatedPool(sums=whole.sums + 1.0, lengths=whole.lengths + 2))
    for role, sees in (("condition.user_role=user", False), (OTHERS, True)):
        module = make_module(PRESET, role).eval()
        changed = module(more).interest != module(inputs).interest
        assert changed.any(dim=1).all() if sees else not changed.any()
    expert = make_module(PRESET, OTHERS).condition.networks["collaborative"]
    added = torch.randn(len(pool.sums), 1, pool.sums.shape[2])
    gated = GatedPool(torch.cat([pool.sums[:, :1] + added, pool.sums[:, 1:]], 1), pool.lengths + 1)
    together = GatedPool(whole.sums + added, whole.lengths + pool.lengths.shape[1])
    here = replace(inputs, pool=gated, whole=together)
    torch.testing.assert_close(expert(here), expert(inputs))
    nothing_else = replace(
        inputs, whole=GatedPool(pool.sums.sum(1, True) + 1e-7, pool.lengths.sum(1, True))
    )
    no_history = replace(
        inputs,
        pool=GatedPool(pool.sums * 0, pool.lengths * 0),
        whole=GatedPool(0 * whole.sums, 0 * whole.lengths),
    )
    torch.testing.assert_close(expert(nothing_else), expert(no_history))


def test_the_whole_history_is_looked_up_only_for_an_expert_that_reads_it(load_interest):
    for kind in ("condition_mlp", "cdp"):
        reads = (f"interest/{kind}", "pooling=mean", OTHERS)
        assert load_interest(*reads).history.whole
        with pytest.raises(ConfigError, match=r"user_role = .* has no effect with .*experts = \["):
            load_interest(*reads, "ablation/no_collaborative")
        assert not load_interest(f"interest/{kind}").history.whole


SUBSAMPLE = {"corruption": "subsample"}
EVIDENCE = {"noise_level": "evidence", "start": "clean", "prediction_type": "x0"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SUBSAMPLE, "corruption = 'subsample' needs noise_level = 'evidence', found 'timestep'"),
        (
            SUBSAMPLE | EVIDENCE | {"pooling": "attention"},
            "corruption = 'subsample' needs pooling = 'mean', found 'attention'",
        ),
        (
            SUBSAMPLE | EVIDENCE | {"noise_loss_weight": 0.0},
            "corruption = 'subsample' needs noise_loss_weight > 0",
        ),
        (
            {"pooling": "attention", "condition": {"user_role": "user_and_other_categories"}},
            "condition.user_role = 'user_and_other_categories' needs pooling = 'mean'",
        ),
        (EVIDENCE, "noise_level = 'evidence' needs corruption = 'subsample', or noise_loss_weight"),
        (
            SUBSAMPLE | EVIDENCE | {"start": "noised", "sampler": "dpmpp_2m"},
            "found start = 'noised', sampler = 'dpmpp_2m'",
        ),
        (
            SUBSAMPLE | EVIDENCE | {"num_inference_steps": 16},
            "num_inference_steps = 16: noise_level = 'evidence' has 1 to 15 steps",
        ),
        (SUBSAMPLE | EVIDENCE | {"num_inference_steps": 0}, "num_inference_steps = 0: noise_level"),
    ],
)
def test_contradictory_settings_are_refused(settings: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        CdpConfig(kind="cdp", **settings)


def test_only_a_part_that_trains_is_looked_up(load_interest):
    assert load_interest(PRESET).history.part
    assert not load_interest(PRESET, "ablation/no_completion").history.part
    assert not load_interest(PRESET, "ablation/no_steps").history.part
    assert not load_interest("interest/cdp_timestep").history.part
