"""Pooled history z_0 (paper eq. 3) and what the modules built on it hand to the tower.

Shared by `pooled`, `condition_mlp` and `cdp`, so that a comparison of them compares nothing else.
"""

# B impressions, D embedding dim, K recency segments (0 is the most recent), P dayparts

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdp_torchrec.interest.attentive_pooling import AttentivePooling
from cdp_torchrec.interest.base import (
    GatedPool,
    InterestDims,
    InterestInput,
)
from cdp_torchrec.interest.config.gated import GatedHistoryConfig, LatentNorm
from cdp_torchrec.interest.output import NORM_EPS, layer_norm


@dataclass(frozen=True)
class PooledHistory:
    """The gated history as one latent."""

    latent: Tensor
    """z_0: normalised mean, or the learned null vector where the history is empty, [B, D]."""
    mean: Tensor
    """Weighted mean before normalisation, zeros where the history is empty, [B, D]."""
    count: Tensor
    """n, behaviours that the latent was made of; float [B]."""

    @property
    def present(self) -> Tensor:
        """1 where the history has a behaviour, else 0; float [B]."""
        return (self.count > 0).to(self.latent.dtype)


class HistoryPooling(nn.Module):
    """One latent from the gated behaviours, with a null history."""

    def __init__(self, config: GatedHistoryConfig, dims: InterestDims) -> None:
        super().__init__()
        self.latent_norm: LatentNorm = config.latent_norm
        self.num_segments, self.num_dayparts = config.num_segments, dims.dayparts
        self.attention = self.mean = self.shift = None
        if config.pooling == "attention":
            self.attention = AttentivePooling(config.attention, dims)
        else:
            self.mean = SegmentMean(config.num_segments)
            if dims.dayparts > 1:
                self.shift = DaypartShift(dims)
        # Eq. 3 is 0 / 0 without behaviours (ambiguity a14).
        self.null_latent = nn.Parameter(nn.init.normal_(torch.empty(dims.item), std=0.02))

    def forward(self, inputs: InterestInput) -> PooledHistory:
        """z_0 of every impression.

        Raises:
            ValueError: the inputs lack a pool, or it has another shape than they and the settings
                say.
        """
        if self.attention is not None:
            mean, count = self.attention.pool(inputs)
        else:
            assert self.mean is not None
            pool = _checked(inputs.pool, "pool", self.num_segments, inputs.item)
            mean, count = self.mean(pool), pool.lengths.sum(dim=1)
            if self.shift is not None:
                daypart = _checked(inputs.daypart, "daypart", self.num_dayparts, inputs.item)
                mean = mean + self.shift(daypart)
        present = count.unsqueeze(1) > 0
        latent = normalise(mean, self.latent_norm).where(present, self.null_latent)
        return PooledHistory(latent=latent, mean=mean, count=count)

    def of_part(self, inputs: InterestInput) -> tuple[Tensor, Tensor]:
        """Latent of a part of the behaviours whatever their recency [B, D], and their number [B].

        Raises:
            ValueError: the inputs lack it, or it has another shape than they and the dayparts say.
        """
        part = _checked(inputs.part, "part", self.num_dayparts, inputs.item)
        count = part.lengths.sum(dim=1)
        mean = part.sums.sum(dim=1) / count.clamp(min=1.0).unsqueeze(1)
        if self.shift is not None:
            mean = mean + self.shift(part)
        return normalise(mean, self.latent_norm), count

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


class SegmentMean(nn.Module):
    """Mean of the gated behaviours (paper eq. 3), with a weight for each recency segment."""

    def __init__(self, num_segments: int) -> None:
        super().__init__()
        # The weight of a single segment cancels out of the mean.
        self.log_weights = nn.Parameter(torch.zeros(num_segments)) if num_segments > 1 else None

    def forward(self, pool: GatedPool) -> Tensor:
        """The mean [B, D], with all weights at 1 exactly eq. 3; zeros without a behaviour."""
        sums, lengths = pool.sums, pool.lengths
        if self.log_weights is not None:
            weights = self.log_weights.exp()
            sums, lengths = sums * weights.unsqueeze(1), lengths * weights
        total = lengths.sum(dim=1, keepdim=True)
        return sums.sum(dim=1) / total.where(total > 0, 1.0)


class DaypartShift(nn.Module):
    """What the time of day at which behaviours happened adds to their mean, 0 at the start.

    sum_p (W_p s_p + n_p b_p) / n, of the sum s_p of n_p behaviours in part p of the day. Where the
    hour says what people look for, a behaviour tells more of the tastes that count in its hour
    (W_p), and what it owes to the hour is taken off (b_p). Ours.
    """

    def __init__(self, dims: InterestDims) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dims.dayparts, dims.item, dims.item))
        self.bias = nn.Parameter(torch.zeros(dims.dayparts, dims.item))

    def forward(self, pool: GatedPool) -> Tensor:
        """The shift of P segments by the time of day, [B, D]; zeros without a behaviour."""
        shift = pool.sums.flatten(1) @ self.weight.flatten(0, 1) + pool.lengths @ self.bias
        return shift / pool.lengths.sum(dim=1, keepdim=True).clamp(min=1.0)


def _checked(pool: GatedPool | None, name: str, num_segments: int, item: Tensor) -> GatedPool:
    """The pool, if it has the segments that are expected and a row for each target item [B, D].

    One row or column would be taken for all, without a word.
    """
    if pool is None:
        raise ValueError(f"InterestInput.{name} is missing: expected sums and lengths")
    for part, values, axes in (("sums", pool.sums, 3), ("lengths", pool.lengths, 2)):
        where = f"InterestInput.{name}.{part}"
        if values.dim() != axes:
            shape = "[B, K, D]" if part == "sums" else "[B, K]"
            raise ValueError(f"{where}: expected {shape}, found {list(values.shape)}")
        if (found := values.shape[1]) != num_segments:
            raise ValueError(f"{where}: expected {num_segments} segments, found {found}")
        if (found := values.shape[0]) != item.shape[0]:
            raise ValueError(f"{where}: expected {item.shape[0]} impressions, found {found}")
    if (found := pool.sums.shape[2]) != item.shape[1]:
        raise ValueError(
            f"InterestInput.{name}.sums: expected width {item.shape[1]}, found {found}"
        )
    return pool


class Emission(nn.Module):
    """What the tower receives of an interest (ambiguity a18)."""

    def __init__(self, config: GatedHistoryConfig, *, dim: int) -> None:
        super().__init__()
        self.emit = config.emit
        self.latent_norm: LatentNorm = config.latent_norm
        self.width = dim * len(config.emit)

    def forward(self, interest: Tensor, *, pooled: PooledHistory, item: Tensor) -> Tensor:
        """The parts, side by side, [B, width].

        Args:
            interest: the module's vector, [B, D].
            pooled: what the interest was made from.
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
        return torch.cat(parts, dim=1)


def normalise(x: Tensor, latent_norm: LatentNorm) -> Tensor:
    """Bring vectors [B, D] to the scale of the latent."""
    match latent_norm:
        case "none":
            return x
        case "layernorm":
            return layer_norm(x)
        case "l2":
            return x * (x.square().mean(dim=-1, keepdim=True) + NORM_EPS).rsqrt()
