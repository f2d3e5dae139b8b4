"""The reverse process of DiffRec and DDRM: x_0 prediction and posterior means without noise."""

# B rows, D width of the state, C width of the condition, T diffusion steps

from itertools import pairwise

from torch import Tensor, nn

from cdp_torchrec.diffusion.concat_denoiser import ConcatDenoiser
from cdp_torchrec.diffusion.config import ConcatDenoiserConfig, NoiseScheduleConfig
from cdp_torchrec.diffusion.sampler import SamplingStep, denoise
from cdp_torchrec.diffusion.schedule import NoiseSchedule


class ReverseProcess(nn.Module):
    """A denoiser, called once in training and T times in serving."""

    def __init__(
        self,
        schedule: NoiseScheduleConfig,
        denoiser: ConcatDenoiserConfig,
        *,
        dim: int,
        condition_dim: int = 0,
    ) -> None:
        super().__init__()
        self.schedule = NoiseSchedule(schedule, prediction_type="x0")
        self.steps = posterior_mean_steps(self.schedule)
        self.denoiser = ConcatDenoiser(
            denoiser,
            dim=dim,
            condition_dim=condition_dim,
            num_train_timesteps=schedule.num_train_timesteps,
        )

    def one_step(
        self, x_0: Tensor, *, noise: Tensor, timesteps: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """x_0 as predicted from its noised self, [B, D].

        Args:
            x_0: clean state, [B, D].
            noise: standard normal draw, [B, D].
            timesteps: int64 in 1..T, [B].
            condition: [B, C], if the denoiser has one.
        """
        x_t = self.schedule.add_noise(x_0, noise, timesteps)
        return self.denoiser(x_t, timesteps, condition)

    def last_state(self, x_0: Tensor, noise: Tensor) -> Tensor:
        """x_T, where a chain from noise starts, [B, D]."""
        signal, sigma = self.schedule.scales(self.schedule.num_train_timesteps)
        return signal * x_0 + sigma * noise

    def chain(self, x_start: Tensor, condition: Tensor | None = None) -> Tensor:
        """The state after all T steps, [B, D], from the state [B, D] that stands for x_T."""

        def predict_x_0(x_t: Tensor, index: int) -> Tensor:
            return self.denoiser(x_t, self.steps[index].timestep, condition)

        return denoise(x_start, steps=self.steps, predict_x_0=predict_x_0)


def posterior_mean_steps(schedule: NoiseSchedule) -> tuple[SamplingStep, ...]:
    """Coefficients of the mean of q(x_{t-1} | x_t, x_0) for t = T, ..., 1 (DDPM, eq. 7).

    All T steps, whatever the state that they start from: DiffRec's `sampling_steps` is the depth
    of corruption before them, never their number.
    """
    steps = []
    for timestep in range(schedule.num_train_timesteps, 0, -1):
        signal, sigma = schedule.scales(timestep)
        next_signal, next_sigma = schedule.scales(timestep - 1)
        alpha = (signal / next_signal) ** 2
        state = alpha**0.5 * next_sigma**2 / sigma**2
        x_0 = next_signal * (1.0 - alpha) / sigma**2
        steps.append(SamplingStep(timestep, state, x_0, previous_x_0=0.0))
    return tuple(steps)


def elbo_weights(schedule: NoiseSchedule) -> list[float]:
    """Weight of the squared error in x_0 at t = 0, ..., T in the variational bound, up to 1/2.

    SNR(t - 1) - SNR(t) (DiffRec, eq. 9), but 1 at t = 1, where that is infinite. Entry 0 is 0.
    """
    scales = [schedule.scales(timestep) for timestep in range(1, schedule.num_train_timesteps + 1)]
    snr = [(signal / sigma) ** 2 for signal, sigma in scales]
    return [0.0, 1.0, *(before - after for before, after in pairwise(snr))]
