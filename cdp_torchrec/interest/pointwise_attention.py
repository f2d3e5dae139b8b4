"""Attention of HSTU (ICML 2024, eq. 2): SiLU of each score by itself in place of a softmax."""

# W rows of a block, X queries, Y keys, H heads, A / V width of a head's keys / values

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class Projection(NamedTuple):
    """What a layer makes of its tokens, heads side by side."""

    u: Tensor
    """Gate of what is attended to, [..., H * V]."""
    q: Tensor
    """[..., H * A]"""
    k: Tensor
    """[..., H * A]"""
    v: Tensor
    """[..., H * V]"""

    def memory(self) -> Tensor:
        """What other tokens attend to, [..., H * (V + A)]."""
        return torch.cat([self.v, self.k], dim=-1)


class PointwiseAttention(nn.Module):
    """Attention whose weights need no other score, so that what one query sees adds up."""

    def __init__(self, *, num_heads: int, scale: float, num_tokens: int) -> None:
        """Say how scores and weights are scaled.

        Args:
            num_heads: H.
            scale: of products of queries and keys.
            num_tokens: N_max, that weights are divided by. It is a constant: a length of the batch
                would tie a score to its neighbours.
        """
        super().__init__()
        self.num_heads = num_heads
        self.scale = scale
        self.num_tokens = num_tokens

    def forward(
        self, q: Tensor, memory: Tensor, *, bias: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """What each query sees, [W, X, H * V].

        A place of padding has a value of zeros, so it adds nothing whatever its score.

        Args:
            q: queries, [W, X, H * A].
            memory: values and keys, [W, Y, H * (V + A)].
            bias: added to the scores, broadcast to [W, H, X, Y].
            mask: 0 where a query must not look, broadcast to [W, H, X, Y].
        """
        v, k = memory.split([memory.shape[2] - q.shape[2], q.shape[2]], dim=2)
        # In place where the gradient needs no copy: scores are most of the memory of a layer.
        scores = self._heads(q * self.scale) @ self._heads(k).transpose(2, 3)
        if bias is not None:
            scores = scores.add_(bias)
        weights = silu(scores)
        if mask is not None:
            weights = weights.mul_(mask)
        return (weights @ self._heads(v)).transpose(1, 2).flatten(2) / self.num_tokens

    def to_itself(self, token: Projection, *, bias: Tensor | None = None) -> Tensor:
        """What tokens [B, ...] see of themselves, [B, H * V].

        Args:
            token: the tokens.
            bias: added to the scores, broadcast to [B, H, 1].
        """
        q, k, v = (x.unflatten(1, (self.num_heads, -1)) for x in (token.q, token.k, token.v))
        scores = (q * k).sum(dim=2, keepdim=True) * self.scale
        if bias is not None:
            scores = scores + bias
        return (silu(scores) * v / self.num_tokens).flatten(1)

    def _heads(self, x: Tensor) -> Tensor:
        """[W, X, H * A] -> [W, H, X, A]."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
