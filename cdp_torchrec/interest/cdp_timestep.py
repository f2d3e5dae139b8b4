"""CDP as the paper has it: the denoiser knows the timestep (arXiv 2509.19876, eqs. 4 and 9-13)."""

# B impressions, D embedding dim, T diffusion steps, K sampled steps, M modulation width

import torch
from torch import Tensor, nn

from cdp_torchrec.diffusion.config import SamplerType
from cdp_torchrec.diffusion.denoiser import Denoiser
from cdp_torchrec.diffusion.fused import Chain, linear_steps
from cdp_torchrec.diffusion.sampler import sampling_steps
from cdp_torchrec.diffusion.schedule import NoiseSchedule
from cdp_torchrec.interest.base import InterestDims, InterestInput
from cdp_torchrec.interest.cdp import CdpInterest, NoiseLoss
from cdp_torchrec.interest.config.gated import CdpConfig
from cdp_torchrec.interest.pooling import PooledHistory
from cdp_torchrec.keyed_random import (
    Stream,
    further_key,
    keyed_normal,
    keyed_timesteps,
    shared_key,
)


class TimestepCdp(CdpInterest[Denoiser]):
    """Noise is added to z_0 over T timesteps, and taken away again in K steps."""

    grid: Tensor
    """Timesteps of the denoiser's calls in serving, int64 [K]."""
    factors: Tensor
    """Of those calls, as `linear_steps` gives them."""

    def __init__(self, config: CdpConfig, dims: InterestDims) -> None:
        super().__init__(config, dims)
        self.last_timestep = config.last_timestep
        self.schedule = NoiseSchedule(config.schedule, prediction_type=config.prediction_type)
        self._make_steps()
        # W_out of eq. 10 is apart from the recurrent step only in reading R2.
        self.read_out = nn.Linear(self.dim, self.dim) if config.train_path == "unrolled" else None

    def _make_denoiser(self, condition_dim: int) -> Denoiser:
        return Denoiser(
            self.config.denoiser,
            dim=self.dim,
            condition_dim=condition_dim,
            num_train_timesteps=self.config.schedule.num_train_timesteps,
        )

    def _make_steps(self) -> None:
        self.steps = sampling_steps(
            self.schedule,
            sampler=self.config.sampler,
            start_timestep=self.last_timestep,
            num_inference_steps=self.config.num_inference_steps,
        )
        grid = torch.tensor([step.timestep for step in self.steps], dtype=torch.int64)
        device = self.schedule.alphas_cumprod.device
        self.register_buffer("grid", grid.to(device), persistent=False)
        factors = linear_steps(self.schedule, self.steps)
        self.register_buffer("factors", factors.to(device), persistent=False)

    def set_sampling(self, *, sampler: SamplerType, num_inference_steps: int) -> None:
        """As of every CDP."""
        super().set_sampling(sampler=sampler, num_inference_steps=num_inference_steps)
        self._make_steps()

    def noise_key(self, inputs: InterestInput) -> Tensor:
        """What the noise of the start state is a function of (a8), int64 [B]."""
        match self.config.noise_of:
            case "impression":
                return inputs.key
            case "request":
                return shared_key(inputs.key, item=inputs.item_id, group=inputs.category_id)
            case "fixed":
                return torch.zeros_like(inputs.key)

    def _purify(
        self, pooled: PooledHistory, condition: Tensor | None, inputs: InterestInput
    ) -> tuple[Tensor, NoiseLoss | None]:
        if self.read_out is not None:
            modulation = self.denoiser.modulation(condition)
            return self._unroll(pooled.latent, modulation, self.noise_key(inputs))
        if self.training and self.config.train_path == "x0_onestep":
            return self._one_step(pooled.latent, self.denoiser.modulation(condition), inputs.key)
        return super()._purify(pooled, condition, inputs)

    def _sample(self, pooled: PooledHistory, modulation: Tensor, key: Tensor) -> Tensor:
        chain = Chain(
            denoiser=self.denoiser,
            schedule=self.schedule,
            steps=self.steps,
            factors=self.factors,
            modulation=modulation,
            step_modulation=self.denoiser.time_modulation(self.grid),
        )
        x_0 = pooled.latent
        more = (further_key(key, draw) for draw in range(1, self.config.num_noise_draws))
        ends = [chain(self._start_state(x_0, one)) for one in (key, *more)]
        return ends[0] if len(ends) == 1 else torch.stack(ends).mean(dim=0)

    def _start_state(self, x_0: Tensor, key: Tensor) -> Tensor:
        signal, sigma = self.schedule.scales(self.last_timestep)
        match self.config.start:
            case "clean":
                return x_0
            case "clean_scaled":
                return signal * x_0
            case "noised":
                return signal * x_0 + sigma * keyed_normal(key, self.dim, Stream.START_NOISE)
            case "gaussian":
                return keyed_normal(key, self.dim, Stream.START_NOISE)

    def _predict(self, x_t: Tensor, modulation: Tensor, timesteps: Tensor | int) -> Tensor:
        correction = self.denoiser(x_t, modulation)
        return correction + self.schedule.noise_free_prediction(x_t, timesteps)

    def _noise_loss(
        self, pooled: PooledHistory, modulation: Tensor, inputs: InterestInput
    ) -> NoiseLoss:
        x_0 = pooled.latent.detach() if self.config.recon_detach else pooled.latent
        return self._one_step(x_0, modulation, inputs.key)[1]

    def _one_step(self, x_0: Tensor, modulation: Tensor, key: Tensor) -> tuple[Tensor, NoiseLoss]:
        """x_0 as predicted at a random timestep [B, D], and its noise loss (eq. 11)."""
        timesteps = keyed_timesteps(key, self.last_timestep, Stream.TRAINING_TIMESTEP)
        noise = keyed_normal(key, self.dim, Stream.TRAINING_NOISE)
        x_t = self.schedule.add_noise(x_0, noise, timesteps)
        prediction = self._predict(
            x_t, modulation + self.denoiser.time_modulation(timesteps), timesteps
        )
        target = self.schedule.target(x_0, noise, timesteps)
        weight: Tensor | float = 1.0
        if self.config.loss_weighting == "min_snr":
            weight = self.schedule.min_snr_weights(timesteps, self.config.min_snr_gamma)
        identity = None
        if self.reports:
            with torch.no_grad():
                untouched = self.schedule.noise_free_prediction(x_t, timesteps) - target
            identity = untouched.square().mean(dim=1) * weight
        noise_loss = NoiseLoss((prediction - target).square().mean(dim=1) * weight, identity)
        return self.schedule.x_0_from(prediction, x_t, timesteps), noise_loss

    def _unroll(
        self, x_0: Tensor, modulation: Tensor, key: Tensor
    ) -> tuple[Tensor, NoiseLoss | None]:
        """z* [B, D] of reading R2, K recurrences, then one read-out; in training its noise loss."""
        assert self.read_out is not None
        x_t = self._start_state(x_0, key)
        hidden = x_t
        for time_modulation in self.denoiser.time_modulation(self.grid).unbind():
            hidden = self.denoiser(hidden, modulation + time_modulation)
        predicted_noise = self.read_out(hidden)
        interest = self.schedule.x_0_from(predicted_noise, x_t, self.last_timestep)
        if not self.training or self.config.noise_loss_weight == 0.0:
            return interest, None
        noise = keyed_normal(key, self.dim, Stream.START_NOISE)
        identity = noise.square().mean(dim=1) if self.reports else None
        return interest, NoiseLoss((predicted_noise - noise).square().mean(dim=1), identity)

    @torch.no_grad()
    def _monitors(self, pooled: PooledHistory, interest: Tensor) -> dict[str, Tensor]:
        """As of every CDP, and how much signal the start state keeps."""
        signal, sigma = self.schedule.scales(self.last_timestep)
        power = (pooled.latent.square().mean(dim=1) * pooled.present).sum()
        snr = (signal / sigma) ** 2 * power / pooled.present.sum().clamp(min=1.0)
        return super()._monitors(pooled, interest) | {"start_snr": snr}
