"""How fast noise replaces signal, and what a prediction means at each timestep (paper eq. 4)."""

# B impressions, D latent dim, T diffusion steps; timestep 0 is the clean latent, T the noisiest

import math
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor, nn

from cdp_torchrec.diffusion.config import NoiseScheduleConfig, PredictionType


class NoiseSchedule(nn.Module):
    """Constants of the forward process, and the conversions between x_0, noise and predictions.

    A prediction is of one of three types: "epsilon" (the noise; eq. 10), "x0" (the clean latent) or
    "v" (signal * noise - sigma * x_0, Salimans and Ho 2022).
    """

    alphas_cumprod: Tensor
    """[T + 1], float32; entry 0 is 1."""
    signal_scales: Tensor
    """sqrt(alphas_cumprod), [T + 1]."""
    noise_scales: Tensor
    """sqrt(1 - alphas_cumprod), [T + 1]."""

    def __init__(self, config: NoiseScheduleConfig, *, prediction_type: PredictionType) -> None:
        """Args: the schedule, and what is predicted.

        Raises:
            ValueError: predictions of such a type are not known.
        """
        super().__init__()
        if prediction_type not in (known := get_args(PredictionType)):
            raise ValueError(f"prediction_type {prediction_type!r}: must be one of {list(known)}")
        self.num_train_timesteps = config.num_train_timesteps
        self.prediction_type: PredictionType = prediction_type
        alphas_cumprod = _alphas_cumprod(config)
        signal_scales = [math.sqrt(a) for a in alphas_cumprod]
        noise_scales = [math.sqrt(1.0 - a) for a in alphas_cumprod]
        # Sampling knows its timesteps in advance and uses the exact float64 values.
        self._float_scales = tuple(zip(signal_scales, noise_scales, strict=True))
        for name, values in (
            ("alphas_cumprod", alphas_cumprod),
            ("signal_scales", signal_scales),
            ("noise_scales", noise_scales),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def scales(self, timestep: int) -> tuple[float, float]:
        """Scale of the signal and of the noise in x_t at one timestep, in float64."""
        return self._float_scales[timestep]

    def add_noise(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noised interest x_t (paper eq. 4).

        Args:
            x_0: clean pooled history, [B, D].
            noise: standard normal draw, [B, D].
            timesteps: step of each impression in 0..T, int64 [B].
        """
        signal, sigma = self._scales_of(timesteps)
        return signal * x_0 + sigma * noise

    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a perfect denoiser predicts from x_t, [B, D] (eq. 11 for "epsilon")."""
        match self.prediction_type:
            case "epsilon":
                return noise
            case "x0":
                return x_0
            case "v":
                signal, sigma = self._scales_of(timesteps)
                return signal * noise - sigma * x_0

    def noise_free_prediction(self, x_t: Tensor, timesteps: Tensor | int) -> Tensor | float:
        """Prediction if x_t held no noise at all, that is x_t = signal * x_0.

        A network that adds its output to this starts, at output zero, by returning the latent from
        which a noise-free chain was started. For "epsilon" it is simply zero.
        """
        if self.prediction_type == "epsilon":
            return 0.0
        signal, sigma = self._scales_of(timesteps)
        return x_t * (1.0 / signal if self.prediction_type == "x0" else -sigma / signal)

    def x_0_from(self, prediction: Tensor, x_t: Tensor, timesteps: Tensor | int) -> Tensor:
        """Clean latent that a prediction implies, [B, D]; one timestep for all, or int64 [B]."""
        if self.prediction_type == "x0":
            return prediction
        signal, sigma = self._scales_of(timesteps)
        if self.prediction_type == "v":
            return signal * x_t - sigma * prediction
        return (x_t - sigma * prediction) / signal

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio alphas_cumprod / (1 - alphas_cumprod), [B]; timesteps in 1..T."""
        # Of the scales, which were rounded once: 1 - alphas_cumprod has few digits near 1.
        signal = self.signal_scales.index_select(0, timesteps)
        return (signal / self.noise_scales.index_select(0, timesteps)).square()

    def min_snr_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Min-SNR-gamma weight of the squared error in the prediction, [B] (arXiv 2303.09556)."""
        snr = self.snr(timesteps)
        clipped = snr.clamp(max=gamma)
        match self.prediction_type:
            case "epsilon":
                return clipped / snr
            case "x0":
                return clipped
            case "v":
                return clipped / (snr + 1.0)

    def _scales_of(self, timesteps: Tensor | int) -> tuple[Tensor, Tensor] | tuple[float, float]:
        if isinstance(timesteps, int):
            return self.scales(timesteps)
        # Not by brackets, which would take -1 for the last timestep.
        return (
            self.signal_scales.index_select(0, timesteps).unsqueeze(1),
            self.noise_scales.index_select(0, timesteps).unsqueeze(1),
        )


def _alphas_cumprod(config: NoiseScheduleConfig) -> list[float]:
    num_steps = config.num_train_timesteps
    ramp = [
        config.beta_start + (config.beta_end - config.beta_start) * t / max(num_steps - 1, 1)
        for t in range(num_steps)
    ]
    match config.beta_schedule:
        case "linear":
            betas = ramp
        case "linear_var":
            curve = [1.0 - config.noise_scale * variance for variance in ramp]
            if config.first_beta is not None:
                first = (1.0 - config.first_beta) / curve[0]
                curve = [first * alpha_cumprod for alpha_cumprod in curve]
            return [1.0, *curve]
        case "cosine":
            curve = [
                math.cos((t / num_steps + 0.008) / 1.008 * math.pi / 2) ** 2
                for t in range(num_steps + 1)
            ]
            betas = _betas_of(curve)
        case "sqrt":
            betas = _betas_of([1.0 - math.sqrt(t / num_steps + 1e-4) for t in range(num_steps + 1)])
    alphas_cumprod = [1.0]
    for beta in betas:
        alphas_cumprod.append(alphas_cumprod[-1] * (1.0 - beta))
    return alphas_cumprod


def _betas_of(curve: list[float]) -> list[float]:
    # The clip of the authors keeps the last state finite.
    return [min(1.0 - after / before, 0.999) for before, after in pairwise(curve)]
