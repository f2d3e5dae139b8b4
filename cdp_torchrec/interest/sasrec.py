"""SASRec: causal self-attention over the most recent behaviours (Kang and McAuley, ICDM 2018).

The encoder runs once per request; its last state is the interest. All in all as in the authors'
code: layer norm on the queries only, keys and values not normalised, a residual that adds the
normalised query, item embeddings scaled by sqrt(D). No dropout, as in every other module here.
"""

# B impressions, L behaviours, W rows of a block, N its length, H heads, D embedding dim

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.interest.attention import check_heads
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.sequential import SasrecConfig, SasrecEncoderConfig
from cdp_torchrec.interest.output import InterestVector
from cdp_torchrec.interest.recent_sequence import (
    NextBehaviours,
    causal_attention,
    keep_recent,
    last_state,
    next_behaviours,
    recency,
)
from cdp_torchrec.interest.sequence import BehaviourSequence

_NORM_EPS = 1e-8
_POSITION_STD = 0.02


class SasrecInterest(InterestModule):
    """The interest is the last state of the encoder; zeros without history.

    A behaviour is its item; category and action type, where the log has them, are added through a
    projection. Query, context and the target do not reach the encoder.
    """

    def __init__(self, config: SasrecConfig, dims: InterestDims) -> None:
        super().__init__()
        dim = dims.item
        check_heads("num_heads", config.num_heads, "model.embedding_dim", dim)
        self.max_length = config.max_length
        side = dims.category + dims.action
        self.side = nn.Linear(side, dim, bias=False) if side else None
        self.position = nn.Parameter(torch.empty(config.max_length, dim).normal_(std=_POSITION_STD))
        self.blocks = nn.ModuleList(
            _Block(dim, num_heads=config.num_heads) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.vector = InterestVector(config, dim=dim)
        self.interest_dim = self.vector.width
        if config.next_item_loss_weight > 0:
            self.loss_weights = {"next_item_loss": config.next_item_loss_weight}

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the last state, [B, interest_dim]."""
        assert inputs.recent is not None, missing("recent")
        recent = keep_recent(inputs.recent, self.max_length)
        states = self.encode(recent)
        interest = self.vector(last_state(states, recent.index), inputs.item)
        losses = {}
        if self.training and self.loss_weights:
            losses["next_item_loss"] = self._next_item_loss(states, recent, inputs.key)
        return InterestOutput(interest=interest, losses=losses)

    def encode(self, recent: BehaviourSequence) -> Tensor:
        """State after each behaviour, [L, D] (paper eqs. 1-5)."""
        return self.transform(self.embed(recent, recency(recent.index)), recent)

    def embed(self, recent: BehaviourSequence, order: Tensor) -> Tensor:
        """Behaviours as the blocks want them, [L, D].

        Args:
            recent: the behaviours.
            order: how many are more recent, int64 [L].
        """
        # The authors pad to the left, so that a position counts from the most recent behaviour.
        place = self.max_length - 1 - order.clamp(max=self.max_length - 1)
        x = recent.item * math.sqrt(recent.item.shape[1]) + self.position.index_select(0, place)
        if self.side is not None:
            x = x + self.side(torch.cat([recent.category, recent.action], dim=1))
        return x

    def transform(self, x: Tensor, recent: BehaviourSequence) -> Tensor:
        """States of embedded behaviours, [L, D], of which `recent` says what is a sequence."""
        for block in self.blocks:
            x = block(x, recent)
        return self.norm(x)

    def _next_item_loss(self, states: Tensor, recent: BehaviourSequence, key: Tensor) -> Tensor:
        following = next_behaviours(recent.index, key=key, length=self.max_length)
        return next_item_loss(states, recent, following, negatives=recent.item)


def next_item_loss(
    states: Tensor, recent: BehaviourSequence, following: NextBehaviours, *, negatives: Tensor
) -> Tensor:
    """Binary cross-entropy of next item and negative (paper eq. 7), [B].

    Args:
        states: after each behaviour, [L, D].
        recent: the behaviours.
        following: what comes next, and what does not.
        negatives: items that `following.negative` are places of, [X, D].
    """
    positive = (states * recent.item.index_select(0, following.positive)).sum(dim=1)
    negative = (states * negatives.index_select(0, following.negative)).sum(dim=1)
    losses = functional.softplus(-positive) + functional.softplus(negative)
    return following.mean(losses, recent.index)


def sasrec_encoder(config: SasrecEncoderConfig, dims: InterestDims) -> SasrecInterest:
    """SASRec as the encoder of another system: of its sizes, without a loss of its own."""
    sizes = {name: getattr(config, name) for name in SasrecEncoderConfig.model_fields}
    return SasrecInterest(SasrecConfig(kind="sasrec", **sizes), dims)


class _Block(nn.Module):
    """Causal self-attention and a point-wise feed-forward network (paper eqs. 2-5)."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        # The keys' half of its bias b would add the same q . b to all scores of a query: it cancels
        # in the softmax.
        self.value_bias = nn.Parameter(self.key_value.bias.detach()[dim:].clone())
        self.key_value.register_parameter("bias", None)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.feed_forward = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor, recent: BehaviourSequence) -> Tensor:
        """[L, D] -> [L, D]."""
        queries = self.attention_norm(x)
        projected = torch.cat([self.query(queries), self.key_value(x)], dim=1)
        # Weights sum to 1, so that a bias of the values is one of their mean.
        attended = causal_attention(projected, recent, num_heads=self.num_heads) + self.value_bias
        x = self.feed_forward_norm(queries + attended)
        return x + self.feed_forward(x)
