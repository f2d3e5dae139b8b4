"""DiffuMIN's orthogonal channels of a target, and the behaviours that belong to each of them."""

# B impressions, L behaviours, W rows of a block, C candidates in a row, N behaviours in a row,
# K channels, F width of item and category

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import CandidateBlock
from cdp_torchrec.interest.attention import top_k_mask
from cdp_torchrec.interest.sequence import BehaviourSequence, present

# Of its own length, what rounding in float64 leaves of a direction that the others span.
_DEPENDENT = 1e-12


@dataclass(frozen=True)
class ChannelInterests:
    """What a user's behaviours say in each channel of a target."""

    channels: Tensor
    """Orthonormal directions O, [B, K, F]."""
    interests: Tensor
    """Behaviours of each channel, aggregated (r_1 ... r_K), zeros where there is none, [B, K, F].
    """
    present: Tensor
    """Which channels have a behaviour, bool [B, K]."""


class InterestChannels(nn.Module):
    """Orthogonal multi-interest extractor (paper section 3.2).

    Each behaviour counts in one channel only, that of its highest relevance A = E O^T, and each
    channel keeps its `num_kept` most relevant behaviours.
    """

    def __init__(self, dim: int, *, num_channels: int, num_kept: int) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.num_kept = num_kept
        self.projection = nn.Linear(dim, num_channels * dim, bias=False)

    def channels(self, target: Tensor) -> Tensor:
        """Orthonormal channels of each target [B, F], float64 [B, K, F] (e_s W, then QR)."""
        # In float64 as all that a choice depends on: see attention.top_k.
        projected = functional.linear(target.double(), self.projection.weight.double())
        return orthonormal(projected.unflatten(1, (self.num_channels, -1)))

    def forward(
        self, target: Tensor, features: Tensor, sequence: BehaviourSequence
    ) -> ChannelInterests:
        """The interests of each impression.

        Args:
            target: item and category of the target, [B, F].
            features: of the behaviours, [L, F].
            sequence: whose behaviours.
        """
        exact = self.channels(target)

        def route(block: CandidateBlock, candidates: Tensor, keys: Tensor) -> Tensor:
            directions = candidates.unflatten(2, exact.shape[1:]).flatten(1, 2)
            shape = (-1, self.num_channels)
            scores = directions.detach() @ keys.detach().double().transpose(1, 2)
            scores = scores.unflatten(1, shape)  # [W, C, K, N]
            # Equal relevance is that of a zero vector: it adds nothing, wherever it counts.
            kept = scores == scores.amax(dim=2, keepdim=True)
            kept = kept & present(block, features.shape[0])[:, None, None]
            if block.behaviour.shape[1] > self.num_kept:
                kept = top_k_mask(scores, kept, self.num_kept)
            # One product over all candidates of a row: keys are not copied for each.
            relevance = directions.to(features.dtype) @ keys.transpose(1, 2)
            total = (relevance * kept.flatten(1, 2)) @ keys
            count = kept.sum(dim=3, keepdim=True)
            mean = total.unflatten(1, shape) / count.clamp(min=1)
            return torch.cat([mean, count.to(mean.dtype)], dim=3)

        candidates = sequence.candidates(exact.flatten(1))
        found = sequence.per_candidate(route, candidates, sequence.behaviours(features))
        return ChannelInterests(
            channels=exact.to(features.dtype),
            interests=found[..., :-1],
            present=found[..., -1] > 0,
        )


def orthonormal(vectors: Tensor) -> Tensor:
    """Orthonormal rows that span the same, in the same order, float64 [B, K, F]; zero if dependent.

    The Q of a QR decomposition whose R has a positive diagonal, by Gram-Schmidt done twice, which
    is orthogonal to rounding. LAPACK's QR, as in the public code, lets the sign of a vector's first
    entry decide the direction of its channel, and routing depends on that direction.
    """
    basis: list[Tensor] = []
    for vector in vectors.unbind(1):
        rest = vector
        for _ in range(2 if basis else 0):
            before = torch.stack(basis, dim=1)
            along = before @ rest.unsqueeze(2)
            rest = rest - (before * along).sum(dim=1)
        power = rest.square().sum(dim=1, keepdim=True)
        least = (_DEPENDENT * vector.detach()).square().sum(dim=1, keepdim=True)
        independent = power > least
        # A direction of rounding would be as long as the others; zeros have no gradient either.
        scale = power.where(independent, torch.ones_like(power)).rsqrt() * independent
        basis.append(rest * scale)
    return torch.stack(basis, dim=1)
