"""Conditioned denoising diffusion of the user's interest (CDP, arXiv 2509.19876).

The category-gated mean of the history is a noisy latent; a denoiser conditioned on query, user,
item, context and scene turns it into the interest in this item. Defaults are the paper's, as far as
it states them; every reading of ours is a setting (a1 .. a18, listed in README.md, number the
ambiguities).
"""

# B impressions, D embedding dim, T diffusion steps, K sampled steps, M modulation width

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdp_torchrec.diffusion.config import SamplerType
from cdp_torchrec.diffusion.denoiser import Denoiser
from cdp_torchrec.diffusion.evidence import EvidenceDenoiser
from cdp_torchrec.diffusion.sampler import SamplingStep, denoise, sampling_steps
from cdp_torchrec.diffusion.schedule import NoiseSchedule
from cdp_torchrec.interest.base import (
    GatedPool,
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
)
from cdp_torchrec.interest.condition import build_condition
from cdp_torchrec.interest.config.gated import CdpConfig
from cdp_torchrec.interest.context_gain import build_gain
from cdp_torchrec.interest.pooling import (
    Emission,
    HistoryPooling,
    PooledHistory,
    normalise,
)
from cdp_torchrec.keyed_random import (
    Stream,
    keyed_normal,
    keyed_timesteps,
    seeded,
    shared_key,
)


@dataclass(frozen=True)
class _NoiseLoss:
    """How well the denoiser restores what training spoils."""

    error: Tensor
    """Mean over dimensions of the squared error, [B]; 0 where there is nothing to restore."""
    identity: Tensor
    """The same of a denoiser that corrects nothing, without gradients."""


class CdpInterest(InterestModule):
    """The interest is z*, the denoised latent of the gated history."""

    grid: Tensor
    """Timesteps of the denoiser's calls in serving, int64 [K]."""

    def __init__(self, config: CdpConfig, dims: InterestDims) -> None:
        super().__init__()
        self.config = config
        if config.noise_loss_weight > 0.0:
            self.loss_weights = {"noise_loss": config.noise_loss_weight}
        self.dim = dims.item
        self.last_timestep = config.last_timestep
        self.pooling = HistoryPooling(config, dims)
        self.emission = Emission(config, dim=self.dim)
        self.interest_dim = self.emission.width
        self.condition = build_condition(config.condition, dims, dim=self.dim)
        self.schedule = NoiseSchedule(config.schedule, prediction_type=config.prediction_type)
        condition_dim = 0 if self.condition is None else self.dim
        self.denoiser: Denoiser | EvidenceDenoiser
        if config.noise_level == "evidence":
            self.denoiser = EvidenceDenoiser(
                config.denoiser, dim=self.dim, condition_dim=condition_dim
            )
        else:
            self.denoiser = Denoiser(
                config.denoiser,
                dim=self.dim,
                condition_dim=condition_dim,
                num_train_timesteps=config.schedule.num_train_timesteps,
            )
        self.gain = build_gain(config.condition, dims, dim=self.dim)
        self._make_steps()
        # W_out of eq. 10 is apart from the recurrent step only in reading R2.
        self.read_out = nn.Linear(self.dim, self.dim) if config.train_path == "unrolled" else None

    def _make_steps(self) -> None:
        self.steps: tuple[SamplingStep, ...] = ()
        if self.config.noise_level == "timestep":
            self.steps = sampling_steps(
                self.schedule,
                sampler=self.config.sampler,
                start_timestep=self.last_timestep,
                num_inference_steps=self.config.num_inference_steps,
            )
        grid = torch.tensor([step.timestep for step in self.steps], dtype=torch.int64)
        device = self.schedule.alphas_cumprod.device
        self.register_buffer("grid", grid.to(device), persistent=False)

    def set_sampling(self, *, sampler: SamplerType, num_inference_steps: int) -> None:
        """Sample in other steps from now on, with the same parameters.

        Raises:
            ValueError: the rest of the configuration does not allow them.
        """
        change = {"sampler": sampler, "num_inference_steps": num_inference_steps}
        self.config = CdpConfig.model_validate(self.config.model_dump() | change)
        self._make_steps()

    def denoised(self, pooled: PooledHistory, condition: Tensor | None, key: Tensor) -> Tensor:
        """z* of a pooled history by the chain of serving, before any gain, [B, D].

        Args:
            pooled: z_0 and what it was made of.
            condition: c, [B, D]; None without experts.
            key: `noise_key` of each impression, int64 [B].
        """
        return self._sample(pooled, self.denoiser.modulation(condition), key)

    def noise_key(self, inputs: InterestInput) -> Tensor:
        """What the noise of the start state is a function of (a8), int64 [B]."""
        match self.config.noise_of:
            case "impression":
                return inputs.key
            case "request":
                return shared_key(inputs.key, item=inputs.item_id, group=inputs.category_id)
            case "fixed":
                return torch.zeros_like(inputs.key)

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Denoised interest, [B, interest_dim]; in training mode with the noise loss."""
        pooled = self.pooling(inputs)
        fused = None if self.condition is None else self.condition(inputs)
        condition = None if fused is None else fused.condition
        modulation = self.denoiser.modulation(condition)
        noise_key = self.noise_key(inputs)
        noise_loss: _NoiseLoss | None = None
        if self.read_out is not None:
            interest, noise_loss = self._unroll(pooled.latent, modulation, noise_key)
        elif self.training and self.config.train_path == "x0_onestep":
            interest, noise_loss = self._one_step(pooled.latent, modulation, inputs.key)
        else:
            interest = self._sample(pooled, modulation, noise_key)
            if self.training and self.config.noise_loss_weight > 0.0:
                noise_loss = self._separate_noise_loss(pooled, condition, modulation, inputs)
        losses, monitors = {}, {}
        gain = None if self.gain is None else self.gain(inputs)
        if self.training:
            monitors = self.pooling.monitors(pooled) | self._monitors(pooled, interest)
            if noise_loss is not None and self.config.noise_loss_weight > 0.0:
                # An empty history has no latent to reconstruct (a13).
                losses["noise_loss"] = noise_loss.error * pooled.present
                monitors["identity_loss"] = (noise_loss.identity * pooled.present).mean()
            if self.condition is not None and fused is not None:
                monitors |= self.condition.monitors(fused)
            if self.gain is not None and gain is not None:
                monitors |= self.gain.monitors(gain)
        emitted = self.emission(
            interest if gain is None else interest * gain, pooled=pooled, item=inputs.item
        )
        return InterestOutput(interest=emitted, losses=losses, monitors=monitors)

    def _sample(self, pooled: PooledHistory, modulation: Tensor, key: Tensor) -> Tensor:
        """z* by the chain of serving (paper section 3.6), [B, D]."""
        x_0 = pooled.latent
        if isinstance(self.denoiser, EvidenceDenoiser):
            return self.denoiser.denoise(
                x_0, pooled.count, modulation, num_steps=self.config.num_inference_steps
            )
        time_modulation = self.denoiser.time_modulation(self.grid).unbind()

        def predict_x_0(x_t: Tensor, index: int) -> Tensor:
            prediction = self._predict(
                x_t, modulation + time_modulation[index], self.steps[index].timestep
            )
            return self.schedule.x_0_from(prediction, x_t, self.steps[index].timestep)

        ends = [
            denoise(self._start_state(x_0, one), steps=self.steps, predict_x_0=predict_x_0)
            for one in (key, *(seeded(key, draw) for draw in range(1, self.config.num_noise_draws)))
        ]
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

    def _separate_noise_loss(
        self,
        pooled: PooledHistory,
        condition: Tensor | None,
        modulation: Tensor,
        inputs: InterestInput,
    ) -> _NoiseLoss:
        """Noise loss of "chain": one call apart from the chain."""
        x_0 = pooled.latent
        if self.config.recon_detach:
            x_0 = x_0.detach()
            if condition is not None:
                modulation = self.denoiser.modulation(condition.detach())
        if self.config.corruption == "subsample":
            assert inputs.part is not None
            return self._completion_loss(pooled, inputs.part, modulation)
        return self._one_step(x_0, modulation, inputs.key)[1]

    def _completion_loss(
        self, pooled: PooledHistory, part: GatedPool, modulation: Tensor
    ) -> _NoiseLoss:
        """How well z of all behaviours is predicted from z of a part of them.

        The latents are detached: the loss would be smallest if all behaviours were the same.
        """
        assert isinstance(self.denoiser, EvidenceDenoiser)
        whole, count = pooled.latent.detach(), part.lengths.sum(dim=1)
        mean = part.sums.sum(dim=1) / count.clamp(min=1.0).unsqueeze(1)
        x = normalise(mean.detach(), self.config.latent_norm)
        useful = ((count > 0) & (count < pooled.count)).to(x.dtype)
        error = self.denoiser.predict(x, count, modulation) - whole
        return _NoiseLoss(
            error.square().mean(dim=1) * useful, (x - whole).square().mean(dim=1) * useful
        )

    def _one_step(self, x_0: Tensor, modulation: Tensor, key: Tensor) -> tuple[Tensor, _NoiseLoss]:
        """x_0 as predicted at a random timestep [B, D], and its noise loss (eq. 11)."""
        assert not isinstance(self.denoiser, EvidenceDenoiser)
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
        with torch.no_grad():
            untouched = self.schedule.noise_free_prediction(x_t, timesteps) - target
        noise_loss = _NoiseLoss(
            (prediction - target).square().mean(dim=1) * weight,
            untouched.square().mean(dim=1) * weight,
        )
        return self.schedule.x_0_from(prediction, x_t, timesteps), noise_loss

    def _unroll(self, x_0: Tensor, modulation: Tensor, key: Tensor) -> tuple[Tensor, _NoiseLoss]:
        """z* [B, D] and noise loss of reading R2: K recurrences, then one read-out."""
        assert self.read_out is not None and not isinstance(self.denoiser, EvidenceDenoiser)
        x_t = self._start_state(x_0, key)
        hidden = x_t
        for time_modulation in self.denoiser.time_modulation(self.grid).unbind():
            hidden = self.denoiser(hidden, modulation + time_modulation)
        predicted_noise = self.read_out(hidden)
        noise = keyed_normal(key, self.dim, Stream.START_NOISE)
        noise_loss = _NoiseLoss(
            (predicted_noise - noise).square().mean(dim=1), noise.square().mean(dim=1)
        )
        return self.schedule.x_0_from(predicted_noise, x_t, self.last_timestep), noise_loss

    @torch.no_grad()
    def _monitors(self, pooled: PooledHistory, interest: Tensor) -> dict[str, Tensor]:
        """Scalars for the log: how much signal the start state keeps, how far z* moved from z_0."""
        present = pooled.present
        power = (pooled.latent.square().mean(dim=1) * present).sum()
        shift = ((interest - pooled.latent).square().mean(dim=1) * present).sum()
        tiny = torch.finfo(power.dtype).tiny
        monitors = {"relative_shift": (shift / power.clamp(min=tiny)).sqrt()}
        if self.config.noise_level == "timestep":
            signal, sigma = self.schedule.scales(self.last_timestep)
            snr = (signal / sigma) ** 2 * power / present.sum().clamp(min=1.0)
            monitors["start_snr"] = snr
        return monitors
