"""CDP: what the paper's equations and our readings of them promise."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from cdp_torchrec.interest import CdpConfig, InterestInput
from cdp_torchrec.keyed_random import (
    Stream,
    further_key,
    impression_key,
    keyed_normal,
    keyed_timesteps,
)
from tests.gradients import idle, idle_parameters, in_float64

ROLES = ("user", "query", "item", "item_attributes", "context", "scene")
CHAIN = ("interest/cdp_paper", 'emit=["interest"]')


def embeddings(
    inputs: InterestInput, preset: str = "interest/cdp_paper"
) -> dict[str, torch.Tensor]:
    """All that a preset reads."""
    assert inputs.pool is not None and inputs.gated is not None
    history = {"pool": inputs.pool.sums}
    if preset == "interest/cdp_timestep":
        names = ("item", "category", "action")
        history = {f"gated.{name}": getattr(inputs.gated, name) for name in names}
    return {role: getattr(inputs, role) for role in ROLES} | history


def gradients(total: torch.Tensor, of: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    found = torch.autograd.grad(total, [*of.values()], allow_unused=True, retain_graph=True)
    return dict(zip(of, found, strict=True))


def test_no_steps_from_a_clean_start_are_the_pooled_history_exactly(make_module, make_inputs):
    module = make_module(*CHAIN, "num_inference_steps=0", "start=clean").eval()
    inputs = make_inputs(num_segments=1)
    pooled = module.pooling(inputs)
    assert torch.equal(module(inputs).interest, pooled.latent)


@pytest.mark.parametrize("num_inference_steps", [1, 4, 20])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "x0", "v"])
def test_adaln_zero_starts_as_the_pooled_history(
    make_module, make_inputs, num_inference_steps, sampler, prediction_type
):
    cdp = make_module(
        "interest/cdp_timestep",
        f"num_inference_steps={num_inference_steps}",
        f"sampler={sampler}",
        f"prediction_type={prediction_type}",
        perturb=False,
    )
    pooled = make_module("interest/pooled_attention", perturb=False)
    pooled.pooling.load_state_dict(cdp.pooling.state_dict())
    inputs = make_inputs()
    torch.testing.assert_close(cdp(inputs).interest, pooled(inputs).interest, rtol=1e-5, atol=1e-5)


def test_condition_mlp_starts_as_the_pooled_history(make_module, make_inputs):
    condition_mlp = make_module("interest/condition_mlp", perturb=False)
    pooled = make_module("interest/pooled_attention", perturb=False)
    pooled.pooling.load_state_dict(condition_mlp.pooling.state_dict())
    inputs = make_inputs()
    assert torch.equal(condition_mlp(inputs).interest, pooled(inputs).interest)


def test_an_oracle_denoiser_has_no_noise_loss_and_finds_the_history(make_module, make_inputs):
    module = make_module(*CHAIN)
    inputs = make_inputs(num_segments=1)
    x_0 = module.pooling(inputs).latent.detach()

    class Oracle(torch.nn.Module):
        def forward(self, x_t: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
            signal, sigma = modulation.unbind(dim=-1)
            return (x_t - signal.unsqueeze(-1) * x_0) / sigma.unsqueeze(-1)

        def modulation(self, condition: torch.Tensor) -> torch.Tensor:
            return torch.zeros(2)

        def time_modulation(self, timesteps: torch.Tensor) -> torch.Tensor:
            scales = (module.schedule.signal_scales, module.schedule.noise_scales)
            return torch.stack([table[timesteps] for table in scales], dim=-1)

    module.denoiser = Oracle()
    output = module(inputs)
    torch.testing.assert_close(output.interest, x_0, rtol=0.0, atol=1e-5)
    assert output.losses["noise_loss"].max() < 1e-9


def test_the_noise_loss_is_eq_11_at_the_keyed_timestep(make_module, make_inputs):
    module, inputs = make_module(*CHAIN), make_inputs(num_segments=1)
    x_0 = module.pooling(inputs).latent
    timesteps = keyed_timesteps(inputs.key, 100, Stream.TRAINING_TIMESTEP)
    noise = keyed_normal(inputs.key, 8, Stream.TRAINING_NOISE)
    x_t = module.schedule.add_noise(x_0, noise, timesteps)
    condition = module.condition(inputs).condition
    modulation = module.denoiser.modulation(condition) + module.denoiser.time_modulation(timesteps)
    expected = (module.denoiser(x_t, modulation) - noise).square().mean(dim=1)
    expected[::4] = 0.0
    torch.testing.assert_close(module(inputs).losses["noise_loss"], expected)


@pytest.mark.parametrize("train_path", ["chain", "x0_onestep", "unrolled"])
def test_an_empty_history_has_no_noise_loss(make_module, make_inputs, train_path):
    module = make_module(*CHAIN, f"train_path={train_path}")
    noise_loss = module(make_inputs(num_segments=1)).losses["noise_loss"]
    assert not noise_loss[::4].any()
    assert noise_loss.count_nonzero() == 9


@pytest.mark.parametrize("preset", ["interest/cdp_timestep", "interest/cdp_paper"])
def test_recon_detach_keeps_the_noise_loss_out_of_every_embedding(make_module, make_inputs, preset):
    module = make_module(preset, "recon_detach=true").double()
    inputs = make_inputs(num_segments=module.config.num_segments, requires_grad=True)
    inputs = in_float64(inputs)
    noise_loss = module(inputs).losses["noise_loss"].sum()
    of_embeddings = gradients(noise_loss, embeddings(inputs, preset))
    assert all(gradient is None for gradient in of_embeddings.values())
    assert idle_parameters(module.denoiser, noise_loss) == []


def test_without_recon_detach_the_noise_loss_reaches_every_embedding(make_module, make_inputs):
    module = make_module(*CHAIN).double()
    inputs = in_float64(make_inputs(num_segments=1, requires_grad=True))
    noise_loss = module(inputs).losses["noise_loss"].sum()
    assert idle(gradients(noise_loss, embeddings(inputs))) == []


def test_the_interest_has_gradients_through_every_step(make_module, make_inputs):
    """The gradient of 20 steps equals finite differences of the whole chain."""
    module = make_module(*CHAIN).double()
    inputs = make_inputs(num_segments=1, batch=3)
    inputs = replace(inputs, **{role: getattr(inputs, role).double() for role in ROLES})
    lengths = torch.ones(3, 1, dtype=torch.float64)

    def interest(sums: torch.Tensor) -> torch.Tensor:
        history = replace(inputs.pool, sums=sums, lengths=lengths)
        return module(replace(inputs, pool=history)).interest

    sums = torch.randn(3, 1, 8, dtype=torch.float64, requires_grad=True)
    # ReLU has kinks, which random points of float64 practically never hit.
    assert torch.autograd.gradcheck(interest, (sums,), nondet_tol=0.0)


def test_training_serves_the_interest_that_evaluation_serves(make_module, make_inputs):
    for preset, num_segments in (("interest/cdp_timestep", 7), ("interest/cdp_paper", 1)):
        module, inputs = make_module(preset), make_inputs(num_segments=num_segments)
        trained = module.train()(inputs).interest
        assert torch.equal(module.eval()(inputs).interest, trained)


def test_one_step_training_predicts_from_the_noise_of_training(make_module, make_inputs):
    module = make_module(*CHAIN, "train_path=x0_onestep")
    inputs = make_inputs(num_segments=1)
    trained = module(inputs)
    timesteps = keyed_timesteps(inputs.key, 100, Stream.TRAINING_TIMESTEP)
    noise = keyed_normal(inputs.key, 8, Stream.TRAINING_NOISE)
    x_0 = module.pooling(inputs).latent
    x_t = module.schedule.add_noise(x_0, noise, timesteps)
    # x_t = signal * x_0 + sigma * noise holds for the predicted pair as well.
    signal = module.schedule.signal_scales[timesteps].unsqueeze(1)
    sigma = module.schedule.noise_scales[timesteps].unsqueeze(1)
    error = (x_t - signal * trained.interest) / sigma - noise
    expected = error.square().mean(dim=1) * (inputs.pool.lengths[:, 0] > 0)
    torch.testing.assert_close(trained.losses["noise_loss"], expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(module.eval()(inputs).interest, trained.interest)


def test_unrolled_runs_the_recurrence_and_reads_the_noise_out_once(make_module, make_inputs):
    module = make_module(*CHAIN, "train_path=unrolled", "num_inference_steps=3")
    inputs = make_inputs(num_segments=1)
    signal, sigma = module.schedule.scales(100)
    noise = keyed_normal(inputs.key, 8, Stream.START_NOISE)
    z_t = signal * module.pooling(inputs).latent + sigma * noise
    modulation = module.denoiser.modulation(module.condition(inputs).condition)
    hidden = z_t
    for timestep in (100, 67, 33):
        time_modulation = module.denoiser.time_modulation(torch.tensor([timestep]))
        hidden = module.denoiser(hidden, modulation + time_modulation)
    predicted_noise = module.read_out(hidden)
    output = module(inputs)
    torch.testing.assert_close(output.interest, (z_t - sigma * predicted_noise) / signal)
    expected = (predicted_noise - noise).square().mean(dim=1)
    expected[::4] = 0.0
    torch.testing.assert_close(output.losses["noise_loss"], expected)


def test_a_gaussian_start_hides_the_history(make_module, make_inputs):
    module = make_module(*CHAIN, "start=gaussian").eval()
    inputs = make_inputs(num_segments=1)
    history = replace(inputs.pool, sums=torch.randn_like(inputs.pool.sums))
    other = replace(inputs, pool=history)
    assert torch.equal(module(other).interest, module(inputs).interest)


@pytest.mark.parametrize("start", ["clean", "clean_scaled"])
def test_a_noise_free_start_ignores_the_key(make_module, make_inputs, start):
    module = make_module(*CHAIN, f"start={start}").eval()
    inputs = make_inputs(num_segments=1)
    other = replace(inputs, key=inputs.key + 1)
    assert torch.equal(module(other).interest, module(inputs).interest)


def test_the_noise_of_an_impression_is_fixed_by_its_key(make_module, make_inputs):
    module = make_module(*CHAIN).eval()
    inputs = make_inputs(num_segments=1)
    assert torch.equal(module(inputs).interest, module(inputs).interest)
    other = replace(inputs, key=inputs.key + 1)
    assert not torch.allclose(module(other).interest, module(inputs).interest)


def of_requests(inputs: InterestInput) -> InterestInput:
    """The same impressions as eight requests of two candidates each, all with the same history."""
    assert inputs.pool is not None
    place = torch.arange(len(inputs.key))
    history = replace(
        inputs.pool,
        sums=inputs.pool.sums[1:2].expand_as(inputs.pool.sums),
        lengths=inputs.pool.lengths[1:2].expand_as(inputs.pool.lengths),
    )
    return replace(
        inputs,
        key=impression_key(place // 2 * 2**40, inputs.item_id, 5),
        category_id=torch.full_like(place, 3),
        pool=history,
    )


def test_noise_of_the_request_tells_requests_apart_but_not_their_candidates(
    make_module, make_inputs
):
    inputs = of_requests(make_inputs(num_segments=1, batch=16))
    assert len(set(inputs.item_id.tolist())) > 2
    settings = ("condition.experts=[]", "num_inference_steps=2")
    kinds = {"impression": 16, "request": 8, "fixed": 1}
    for kind, distinct in kinds.items():
        module = make_module(*CHAIN, *settings, f"noise_of={kind}").eval()
        interest = module(inputs).interest
        assert len({tuple(row) for row in interest.tolist()}) == distinct
        if kind == "request":
            assert torch.equal(interest[::2], interest[1::2])
            other = replace(inputs, category_id=inputs.category_id + torch.arange(16) % 2)
            assert not torch.allclose(module(other).interest[1::2], interest[1::2])


def test_the_interest_of_several_draws_is_the_mean_of_their_chains(make_module, make_inputs):
    inputs = make_inputs(num_segments=1)
    one = make_module(*CHAIN).eval()
    three = make_module(*CHAIN, "num_noise_draws=3").eval()
    three.load_state_dict(one.state_dict())
    keys = (inputs.key, further_key(inputs.key, 1), further_key(inputs.key, 2))
    chains = [one(replace(inputs, key=key)).interest for key in keys]
    assert not torch.allclose(chains[0], chains[1])
    torch.testing.assert_close(three(inputs).interest, torch.stack(chains).mean(dim=0))


def test_training_draws_no_timestep_above_the_start(make_module, make_inputs):
    module = make_module(*CHAIN, "start_timestep=10", "num_inference_steps=5").eval()
    assert module.grid.tolist() == [10, 8, 6, 4, 2]
    module.denoiser.time_modulation = lambda timesteps: (_ for _ in ()).throw(
        AssertionError(timesteps)
    )
    inputs = make_inputs(num_segments=1, batch=512)
    with pytest.raises(AssertionError) as raised:
        module._one_step(module.pooling(inputs).latent, torch.zeros(32), inputs.key)
    (timesteps,) = raised.value.args
    assert sorted(timesteps.unique().tolist()) == list(range(1, 11))


def test_a_noise_loss_of_weight_zero_is_not_computed(make_module, make_inputs):
    module = make_module(*CHAIN, "noise_loss_weight=0.0")
    assert module(make_inputs(num_segments=1)).losses == {}


def test_monitors_are_detached_scalars_of_training_only(make_module, make_inputs):
    module, inputs = make_module("interest/cdp_timestep"), make_inputs(requires_grad=True)
    monitors = module(inputs).monitors
    assert set(monitors) == {
        "empty_history",
        "latent_std",
        "start_snr",
        "relative_shift",
        "identity_loss",
        "gate_entropy",
        "gate_spread",
        "gate_collaborative",
        "gate_context",
        "gate_scene",
    }
    for value in monitors.values():
        assert value.shape == ()
        assert value.isfinite()
        assert not value.requires_grad
    assert monitors["start_snr"].item() == pytest.approx(0.890, rel=0.01)
    assert module.eval()(inputs).monitors == {}
    assert module(inputs).losses == {}


def test_the_untouched_latent_has_no_shift(make_module, make_inputs):
    module = make_module("interest/cdp_timestep", perturb=False)
    assert module(make_inputs()).monitors["relative_shift"] < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_timestep": 101}, "start_timestep = 101 is above"),
        ({"num_inference_steps": 101}, "num_inference_steps = 101 is more than the 100"),
        ({"num_inference_steps": 0}, "num_inference_steps = 0 needs start = 'clean'"),
        ({"train_path": "x0_onestep", "recon_detach": True}, "recon_detach needs train_path"),
        ({"noise_of": "request", "start": "clean"}, "need noise at the start"),
        ({"num_noise_draws": 2, "start": "clean_scaled"}, "need noise at the start"),
        ({"num_noise_draws": 2, "train_path": "unrolled"}, "the noise of one start state"),
        ({"train_path": "unrolled", "start": "clean"}, "literal reading of eqs. 9-10"),
        ({"train_path": "unrolled", "prediction_type": "x0"}, "literal reading of eqs. 9-10"),
    ],
)
def test_contradictory_settings_are_refused(settings: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        CdpConfig(kind="cdp", **settings)


def test_the_defaults_are_the_paper_preset(load_interest):
    paper = load_interest("interest/cdp_paper")
    default = CdpConfig(kind="cdp")
    assert {f: getattr(paper, f) for f in CdpConfig.model_fields} == {
        f: getattr(default, f) for f in CdpConfig.model_fields
    }


def test_every_embedding_moves_the_interest(make_module, make_inputs):
    for preset, num_segments in (("interest/cdp_timestep", 7), ("interest/cdp_paper", 1)):
        module = make_module(preset, "condition.item_gradient=flow").double().eval()
        inputs = in_float64(make_inputs(num_segments=num_segments, requires_grad=True))
        interest = module(inputs).interest
        assert idle(gradients(interest.square().sum(), embeddings(inputs, preset))) == []
