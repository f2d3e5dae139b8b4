"""Pooled history z_0 (paper eq. 3) and what the modules built on it hand to the tower.

Shared by `pooled`, `condition_mlp` and `cdp`, so that a comparison of them compares nothing else.
"""

# B impressions, D embedding dim, K recency segments (0 is the most recent)

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.config import Config
from cdp_torchrec.interest.base import GatedPool

Emit = Literal["interest", "interest_item", "pooled", "match", "count"]
LatentNorm = Literal["none", "layernorm", "l2"]

# Embeddings start at a standard deviation of 0.001 to 0.1, and a mean of many is smaller still:
# PyTorch's default of 1e-5 would drown their variance.
_NORM_EPS = 1e-8


class GatedHistoryConfig(Config):
    """Settings of every module that works on the category-gated history."""

    recency_segments: tuple[PositiveInt, ...] = ()
    """Sizes of the most recent segments of the gated history; a last segment holds all older
    behaviours. [1, 4, 16] makes K = 4; [] makes K = 1, the paper's plain mean. With K > 1 each
    segment has a learned positive weight in the mean, 1 at the start (ambiguity a17)."""
    latent_norm: LatentNorm = "none"
    """Scale of z_0 (ambiguity a10). The paper is silent. "none" keeps the tiny scale of embeddings,
    which noise of variance 0.5 erases; "layernorm" and "l2" give every latent unit variance."""
    emit: Annotated[tuple[Emit, ...], Field(min_length=1)] = ("interest",)
    """What the tower receives (ambiguity a18), in this order. Paper: the interest alone.
    "interest": the module's vector, [D]. "interest_item": its Hadamard product with the target
    item, [D]. "pooled": z_0, [D]. "match": log(1 + n) of the n behaviours of each segment on the
    target item itself, [K], exact also for items that training never saw. "count": log(1 + length)
    of each segment and an indicator of the empty history, [K + 1]."""

    @field_validator("emit")
    @classmethod
    def _emit_once(cls, emit: tuple[Emit, ...]) -> tuple[Emit, ...]:
        if len(set(emit)) < len(emit):
            raise ValueError("each part can be emitted once only")
        return emit

    @property
    def num_segments(self) -> int:
        """K, the number of segments of the gated history."""
        return len(self.recency_segments) + 1


@dataclass(frozen=True)
class PooledHistory:
    """The gated history as one latent."""

    latent: Tensor
    """z_0: normalised mean, or the learned null vector where the history is empty, [B, D]."""
    mean: Tensor
    """Weighted mean before normalisation, zeros where the history is empty, [B, D]."""
    present: Tensor
    """1 where the history has a behaviour, else 0; float [B]."""


class HistoryPooling(nn.Module):
    """Mean of the gated behaviours (paper eq. 3) with recency weights and a null history."""

    def __init__(self, config: GatedHistoryConfig, *, dim: int) -> None:
        super().__init__()
        self.latent_norm: LatentNorm = config.latent_norm
        # The weight of a single segment cancels out of the mean.
        self.log_weights = (
            nn.Parameter(torch.zeros(config.num_segments)) if config.num_segments > 1 else None
        )
        # Eq. 3 is 0 / 0 without behaviours (ambiguity a14).
        self.null_latent = nn.Parameter(nn.init.normal_(torch.empty(dim), std=0.02))

    def forward(self, history: GatedPool) -> PooledHistory:
        """z_0 of every impression; with all weights at 1 exactly eq. 3."""
        sums, lengths = history.sums, history.lengths
        if self.log_weights is not None:
            weights = self.log_weights.exp()
            sums, lengths = sums * weights.unsqueeze(1), lengths * weights
        total = lengths.sum(dim=1, keepdim=True)
        present = total > 0
        mean = sums.sum(dim=1) / total.where(present, 1.0)
        latent = normalise(mean, self.latent_norm).where(present, self.null_latent)
        return PooledHistory(latent=latent, mean=mean, present=present.squeeze(1).to(mean.dtype))

    @torch.no_grad()
    def monitors(self, pooled: PooledHistory) -> dict[str, Tensor]:
        """Scalars for the log: share of empty histories, and the scale of z_0 in the others."""
        num_present = pooled.present.sum().clamp(min=1.0)
        mean_square = pooled.mean.square().mean(dim=1).sum() / num_present
        mean = pooled.mean.mean(dim=1).sum() / num_present
        return {
            "empty_history": 1.0 - pooled.present.mean(),
            "latent_std": (mean_square - mean.square()).clamp(min=0.0).sqrt(),
        }


class Emission(nn.Module):
    """What the tower receives of an interest (ambiguity a18)."""

    def __init__(self, config: GatedHistoryConfig, *, dim: int) -> None:
        super().__init__()
        self.emit = config.emit
        self.latent_norm: LatentNorm = config.latent_norm
        widths: dict[Emit, int] = {
            "interest": dim,
            "interest_item": dim,
            "pooled": dim,
            "match": config.num_segments,
            "count": config.num_segments + 1,
        }
        self.width = sum(widths[part] for part in config.emit)

    def forward(
        self, interest: Tensor, *, pooled: PooledHistory, history: GatedPool, item: Tensor
    ) -> Tensor:
        """The parts, side by side, [B, width].

        Args:
            interest: the module's vector, [B, D].
            pooled: what the interest was made from.
            history: gated history that was pooled.
            item: target item, [B, D].
        """
        parts = []
        for part in self.emit:
            match part:
                case "interest":
                    parts.append(interest)
                case "interest_item":
                    parts.append(interest * normalise(item, self.latent_norm))
                case "pooled":
                    parts.append(pooled.latent)
                case "match":
                    parts.append(history.matches.log1p())
                case "count":
                    parts.append(history.lengths.log1p())
                    parts.append(1.0 - pooled.present.unsqueeze(1))
        return torch.cat(parts, dim=1)


def normalise(x: Tensor, latent_norm: LatentNorm) -> Tensor:
    """Bring vectors [B, D] to the scale of the latent."""
    match latent_norm:
        case "none":
            return x
        case "layernorm":
            return functional.layer_norm(x, x.shape[-1:], eps=_NORM_EPS)
        case "l2":
            return x * (x.square().mean(dim=-1, keepdim=True) + _NORM_EPS).rsqrt()
