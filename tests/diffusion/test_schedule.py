"""The schedule has the paper's numbers, and its conversions are consistent."""

import math
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from cdp_torchrec.diffusion.config import NoiseScheduleConfig, PredictionType
from cdp_torchrec.diffusion.schedule import NoiseSchedule
from cdp_torchrec.interest.config.generative import DdrmConfig
from cdp_torchrec.keyed_random import Stream, keyed_normal

PREDICTION_TYPES: tuple[PredictionType, ...] = get_args(PredictionType)


def make_schedule(prediction_type: PredictionType = "epsilon", **settings) -> NoiseSchedule:
    return NoiseSchedule(NoiseScheduleConfig(**settings), prediction_type=prediction_type)


def test_paper_schedule_keeps_47_percent_of_the_variance():
    schedule = make_schedule()
    assert len(schedule.alphas_cumprod) == 101
    expected = {0: 1.0, 1: 0.995, 5: 0.9748, 50: 0.7314, 95: 0.4950}
    for timestep, value in expected.items():
        assert schedule.alphas_cumprod[timestep].item() == pytest.approx(value, abs=5e-5)
    assert schedule.alphas_cumprod[100].item() == pytest.approx(0.470982, abs=1e-6)
    assert schedule.snr(torch.tensor([100])).item() == pytest.approx(0.890, abs=5e-4)


def test_ratios_of_signal_to_noise_keep_their_digits_where_there_is_hardly_any_noise():
    """Fails where 1 - alphas_cumprod is computed in float32."""
    schedule = NoiseSchedule(DdrmConfig(kind="ddrm").schedule, prediction_type="x0")
    exact = [(signal / sigma) ** 2 for signal, sigma in map(schedule.scales, range(1, 31))]
    assert exact[0] > 9e4
    torch.testing.assert_close(schedule.snr(torch.arange(1, 31)), torch.tensor(exact))


def test_linear_var_reads_the_same_numbers_as_marginal_variance():
    schedule = make_schedule(beta_schedule="linear_var")
    assert schedule.scales(1)[1] == pytest.approx(math.sqrt(0.005 * 0.005))
    assert schedule.scales(100)[1] == pytest.approx(math.sqrt(0.005 * 0.01))


def test_a_fixed_first_beta_leaves_the_later_betas_as_they_were():
    settings = {"beta_schedule": "linear_var", "noise_scale": 0.5, "num_train_timesteps": 5}
    plain, fixed = make_schedule(**settings), make_schedule(**settings, first_beta=1e-5)
    assert fixed.scales(1)[0] ** 2 == pytest.approx(1.0 - 1e-5, rel=1e-12)
    for t in range(2, 6):
        kept = [(s.scales(t)[0] / s.scales(t - 1)[0]) ** 2 for s in (plain, fixed)]
        assert kept[0] == pytest.approx(kept[1], rel=1e-12)


def test_cosine_follows_its_closed_form_until_the_clip():
    schedule = make_schedule(beta_schedule="cosine")
    for timestep in (0, 1, 50, 99):
        value = math.cos((timestep / 100 + 0.008) / 1.008 * math.pi / 2) ** 2
        value /= math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        assert schedule.alphas_cumprod[timestep].item() == pytest.approx(value, rel=1e-5)
    assert 0 < schedule.scales(100)[0] < 1e-3


def test_noise_grows_with_every_timestep():
    for beta_schedule in ("linear", "linear_var", "cosine", "sqrt"):
        schedule = make_schedule(beta_schedule=beta_schedule)
        assert all(schedule.scales(t)[1] < schedule.scales(t + 1)[1] for t in range(100))


def test_noised_latent_has_the_closed_form_moments():
    schedule = make_schedule()
    noise = keyed_normal(torch.arange(50_000), 4, Stream.START_NOISE)
    x_0 = torch.full_like(noise, 2.0)
    for timestep in (1, 50, 100):
        x_t = schedule.add_noise(x_0, noise, torch.full((50_000,), timestep))
        signal, sigma = schedule.scales(timestep)
        assert x_t.mean().item() == pytest.approx(2.0 * signal, abs=0.01)
        assert x_t.var().item() == pytest.approx(sigma**2, rel=0.02)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_target_implies_the_clean_latent(prediction_type: PredictionType):
    schedule = make_schedule(prediction_type)
    x_0, noise = torch.randn(100, 6), torch.randn(100, 6)
    timesteps = torch.arange(1, 101)
    x_t = schedule.add_noise(x_0, noise, timesteps)
    target = schedule.target(x_0, noise, timesteps)
    torch.testing.assert_close(schedule.x_0_from(target, x_t, timesteps), x_0)
    one_for_all = schedule.x_0_from(target[41:42], x_t[41:42], 42)
    torch.testing.assert_close(one_for_all, x_0[41:42])


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_noise_free_prediction_is_the_target_without_noise(prediction_type: PredictionType):
    schedule = make_schedule(prediction_type)
    x_0, timesteps = torch.randn(100, 6), torch.arange(1, 101)
    noise = torch.zeros_like(x_0)
    x_t = schedule.add_noise(x_0, noise, timesteps)
    prediction = schedule.noise_free_prediction(x_t, timesteps) + noise
    torch.testing.assert_close(prediction, schedule.target(x_0, noise, timesteps))


def test_min_snr_weighs_the_same_error_alike_in_every_prediction_type():
    x_0, noise, wrong = torch.randn(3, 100, 6, dtype=torch.float64).unbind()
    timesteps = torch.arange(1, 101)
    losses = {}
    for prediction_type in PREDICTION_TYPES:
        schedule = make_schedule(prediction_type).double()
        x_t = schedule.add_noise(x_0, noise, timesteps)
        # The prediction that means "the clean latent is `wrong`".
        signal = schedule.signal_scales[timesteps].unsqueeze(1)
        sigma = schedule.noise_scales[timesteps].unsqueeze(1)
        implied_noise = (x_t - signal * wrong) / sigma
        error = schedule.target(wrong, implied_noise, timesteps) - schedule.target(
            x_0, noise, timesteps
        )
        weights = schedule.min_snr_weights(timesteps, 5.0)
        losses[prediction_type] = weights * error.square().mean(dim=1)
    torch.testing.assert_close(losses["epsilon"], losses["x0"], rtol=1e-4, atol=0.0)
    torch.testing.assert_close(losses["v"], losses["x0"], rtol=1e-4, atol=0.0)


def test_timesteps_and_types_that_there_are_not_are_refused():
    schedule = NoiseSchedule(NoiseScheduleConfig(), prediction_type="epsilon")
    x = torch.zeros(2, 3)
    for timestep in (-1, schedule.num_train_timesteps + 1):
        timesteps = torch.tensor([0, timestep])
        for asked in (lambda t: schedule.add_noise(x, x, t), schedule.snr):
            with pytest.raises(IndexError):
                asked(timesteps)
    with pytest.raises(ValueError, match=r"'eps': must be one of \['epsilon', 'x0', 'v'\]"):
        NoiseSchedule(NoiseScheduleConfig(), prediction_type="eps")  # pyrefly: ignore


def test_constants_are_buffers_that_stay_out_of_checkpoints():
    schedule = make_schedule()
    assert {name for name, _ in schedule.named_buffers()} == {
        "alphas_cumprod",
        "signal_scales",
        "noise_scales",
    }
    assert schedule.alphas_cumprod.dtype == torch.float32
    assert not schedule.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta_start": 0.02}, "beta_start = 0.02 is above beta_end = 0.01"),
        (
            {"beta_schedule": "linear_var", "beta_start": 0.01},
            "beta_start and beta_end are both 0.01",
        ),
        ({"beta_schedule": "linear_var", "noise_scale": 200.0}, "must stay below 1"),
        ({"beta_end": 1.0}, "beta_end"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
    ],
)
def test_impossible_schedules_are_refused(settings: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        NoiseScheduleConfig(**settings)
