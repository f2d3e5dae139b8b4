"""Conditioned denoising diffusion of the user's interest (CDP, arXiv 2509.19876).

The category-gated mean of the history is a noisy latent; a denoiser conditioned on query, user,
item, context and scene turns it into the interest in this item. What the denoiser knows of the
noise makes two kinds of it: cdp_timestep.py, the paper's, and cdp_evidence.py. Defaults are the
paper's, as far as it states them; every reading of ours is a setting (a1 .. a18, listed in
README.md, number the ambiguities).
"""

# B impressions, D embedding dim, M modulation width

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from cdp_torchrec.diffusion.config import SamplerType
from cdp_torchrec.diffusion.denoiser import ConditionedDenoiser
from cdp_torchrec.diffusion.sampler import SamplingStep
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
)
from cdp_torchrec.interest.condition import build_condition
from cdp_torchrec.interest.config.gated import CdpConfig
from cdp_torchrec.interest.context_gain import build_gain
from cdp_torchrec.interest.pooling import Emission, HistoryPooling, PooledHistory

DenoiserT = TypeVar("DenoiserT", bound=ConditionedDenoiser)


@dataclass(frozen=True)
class NoiseLoss:
    """How well the denoiser restores what training spoils."""

    error: Tensor
    """Mean over dimensions of the squared error, [B]; 0 where there is nothing to restore."""
    identity: Tensor | None
    """The same of a denoiser that corrects nothing, without gradients; None where nobody reads it.
    """


class CdpInterest(InterestModule, Generic[DenoiserT]):
    """The interest is z*, the denoised latent of the gated history."""

    denoiser: DenoiserT
    steps: tuple[SamplingStep, ...] = ()
    """Those of the sampler, if the process has one."""

    def __init__(self, config: CdpConfig, dims: InterestDims) -> None:
        super().__init__()
        self.config = config
        if config.noise_loss_weight > 0.0:
            self.loss_weights = {"noise_loss": config.noise_loss_weight}
        self.dim = dims.item
        self.pooling = HistoryPooling(config, dims)
        self.emission = Emission(config, dim=self.dim)
        self.interest_dim = self.emission.width
        self.condition = build_condition(config.condition, dims, dim=self.dim)
        self.denoiser = self._make_denoiser(0 if self.condition is None else self.dim)
        self.gain = build_gain(config.condition, dims, dim=self.dim)

    def set_sampling(self, *, sampler: SamplerType, num_inference_steps: int) -> None:
        """Sample in other steps from now on, with the same parameters.

        Raises:
            ValueError: the rest of the configuration does not allow them.
        """
        change = {"sampler": sampler, "num_inference_steps": num_inference_steps}
        self.config = CdpConfig.model_validate(self.config.model_dump() | change)

    def denoised(self, pooled: PooledHistory, condition: Tensor | None, key: Tensor) -> Tensor:
        """z* of a pooled history by the chain of serving, before any gain, [B, D].

        Args:
            pooled: z_0 and what it was made of.
            condition: c, [B, D]; None without experts.
            key: `noise_key` of each impression, int64 [B].
        """
        return self._sample(pooled, self.denoiser.modulation(condition), key)

    def noise_key(self, inputs: InterestInput) -> Tensor:
        """What the noise of the start state, if there is any, is a function of, int64 [B]."""
        return inputs.key

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Denoised interest, [B, interest_dim]; in training mode with the noise loss."""
        pooled = self.pooling(inputs)
        fused = None if self.condition is None else self.condition(inputs)
        condition = None if fused is None else fused.condition
        interest, noise_loss = self._purify(pooled, condition, inputs)
        losses, monitors = {}, {}
        gain = None if self.gain is None else self.gain(inputs)
        if self.training and noise_loss is not None and self.config.noise_loss_weight > 0.0:
            # An empty history has no latent to reconstruct (a13).
            losses["noise_loss"] = noise_loss.error * pooled.present
        if self.reports:
            monitors = self.pooling.monitors(pooled) | self._monitors(pooled, interest)
            if losses and noise_loss is not None and noise_loss.identity is not None:
                monitors["identity_loss"] = (noise_loss.identity * pooled.present).mean()
            if self.condition is not None and fused is not None:
                monitors |= self.condition.monitors(fused)
            if self.gain is not None and gain is not None:
                monitors |= self.gain.monitors(gain)
        emitted = self.emission(
            interest if gain is None else interest * gain, pooled=pooled, item=inputs.item
        )
        return InterestOutput(interest=emitted, losses=losses, monitors=monitors)

    @abstractmethod
    def _make_denoiser(self, condition_dim: int) -> DenoiserT:
        """The denoiser, given the width of the condition, 0 without one."""

    def _purify(
        self, pooled: PooledHistory, condition: Tensor | None, inputs: InterestInput
    ) -> tuple[Tensor, NoiseLoss | None]:
        """z* by the chain of serving [B, D], and in training the noise loss of a call apart."""
        modulation = self.denoiser.modulation(condition)
        interest = self._sample(pooled, modulation, self.noise_key(inputs))
        if not self.training or self.config.noise_loss_weight == 0.0:
            return interest, None
        if self.config.recon_detach and condition is not None:
            modulation = self.denoiser.modulation(condition.detach())
        return interest, self._noise_loss(pooled, modulation, inputs)

    @abstractmethod
    def _sample(self, pooled: PooledHistory, modulation: Tensor, key: Tensor) -> Tensor:
        """z* by the chain of serving (paper section 3.6), [B, D]."""

    @abstractmethod
    def _noise_loss(
        self, pooled: PooledHistory, modulation: Tensor, inputs: InterestInput
    ) -> NoiseLoss:
        """What one call of the denoiser makes of what training spoils."""

    @torch.no_grad()
    def _monitors(self, pooled: PooledHistory, interest: Tensor) -> dict[str, Tensor]:
        """Scalars for the log: how far z* moved from z_0."""
        power = _power(pooled.latent, pooled)
        shift = _power(interest - pooled.latent, pooled)
        tiny = torch.finfo(power.dtype).tiny
        return {"relative_shift": (shift / power.clamp(min=tiny)).sqrt()}


def _power(x: Tensor, pooled: PooledHistory) -> Tensor:
    """Sum over the impressions with a history of mean squares, of [B, D]."""
    return (x.square().mean(dim=1) * pooled.present).sum()
