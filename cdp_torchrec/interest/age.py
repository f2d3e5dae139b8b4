"""The time between a behaviour and its request: an embedding, and a weight that falls with it."""

# L behaviours, D width

import torch
from torch import Tensor, nn

NUM_AGE_BUCKETS = 32
_SECONDS_PER_HOUR = 3600.0


def age_bucket(age: Tensor) -> Tensor:
    """Logarithmic bucket of an age in seconds, int64 [L]: 0 below 1 s, doubling up to 68 years.

    Time is request time minus event time, never a position in the sequence: two users with the same
    items at other moments are different users.
    """
    return age.clamp(min=0).add(1).log2().long().clamp(max=NUM_AGE_BUCKETS - 1)


class AgeEmbedding(nn.Module):
    """A vector for each bucket of age."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(NUM_AGE_BUCKETS, dim).normal_(std=0.02))

    def forward(self, age: Tensor) -> Tensor:
        """[L] seconds -> [L, D]."""
        return self.weight.index_select(0, age_bucket(age))


def log_forgetting(seconds: Tensor) -> Tensor:
    """Logarithm of a weight that falls as 1 / (1 + hours), at most 0; a slope is its power.

    Smooth, so that rounding of an age in float32 (a second beyond 194 days) changes it little.
    """
    return (seconds.clamp(min=0) / _SECONDS_PER_HOUR).log1p_().neg_()
