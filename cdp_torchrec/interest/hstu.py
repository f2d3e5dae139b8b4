"""HSTU: hierarchical sequential transduction units (Zhai et al., ICML 2024) with target slots.

A request's tokens are those of user, query and scene, its behaviours oldest first, and its
candidates. Each token attends to those before it and to itself, but no candidate to another: so
prefix and history are encoded once per request, and a candidate costs one row of scores. There is
no softmax: pointwise SiLU scores are divided by a constant, never by a length of the batch.
"""

# B impressions, L behaviours, R rows of all blocks, P prefix tokens, D embedding dim

import torch
from torch import Tensor, nn

from cdp_torchrec.data.history.sequence_index import SequenceIndex
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.sequential import HstuConfig
from cdp_torchrec.interest.hstu_layer import HstuLayer, HstuTokens
from cdp_torchrec.interest.output import InterestVector, layer_norm
from cdp_torchrec.interest.recent_sequence import keep_recent, recency
from cdp_torchrec.interest.sequence import BehaviourSequence

_PREFIX_ROLES = ("user", "query", "scene")
_TABLE_STD = 0.02
_TIME_BUCKETS = 2048


class HstuInterest(InterestModule):
    """The interest is the encoded target slot.

    User, query and scene, as far as the dataset has them, are one prefix token each, read from any
    impression of the request. Context can differ within a request (position on the page), so it
    joins the candidate's own token. A candidate has a learned placeholder where a behaviour has its
    action; without action types in the log the placeholder alone tells them apart. Without history
    a candidate attends to the prefix and to itself.
    """

    def __init__(self, config: HstuConfig, dims: InterestDims) -> None:
        super().__init__()
        self.max_length = config.max_length
        self.tokens = _Tokens(config, dims)
        num_tokens = len(self.tokens.prefix) + config.max_length + 1
        self.layers = nn.ModuleList(
            HstuLayer(
                config,
                dim=dims.item,
                num_tokens=num_tokens,
                encodes_history=depth + 1 < config.num_layers,
            )
            for depth in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(dims.item)
        self.vector = InterestVector(config, dim=dims.item)
        self.interest_dim = self.vector.width

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the target slots, [B, interest_dim]."""
        assert inputs.recent is not None, missing("recent")
        recent = keep_recent(inputs.recent, self.max_length)
        tokens = self.tokens(inputs, recent)
        for layer in self.layers:
            tokens = layer(tokens, recent)
        return InterestOutput(interest=self.vector(self.norm(tokens.target), inputs.item))


class _Tokens(nn.Module):
    """The tokens that enter the first layer, [..., D].

    Contents are in layer norm, as in DLRM-v3. Its factor sqrt(D) on them is left out: at D = 16 it
    would hide the positions and times that are added to them.
    """

    def __init__(self, config: HstuConfig, dims: InterestDims) -> None:
        super().__init__()
        dim = dims.item
        widths = {"user": dims.user, "query": dims.query, "scene": dims.scene}
        self.num_categories = dims.category
        self.content = nn.Linear(dim + dims.category, dim)
        self.action = nn.Linear(dims.action, dim, bias=False) if dims.action else None
        self.context = nn.Linear(dims.context, dim, bias=False) if dims.context else None
        self.placeholder = nn.Parameter(torch.empty(dim).normal_(std=_TABLE_STD))
        self.prefix = nn.ModuleDict(
            {role: nn.Linear(widths[role], dim) for role in _PREFIX_ROLES if widths[role]}
        )
        # In "research" positions and times enter as a bias in every layer instead.
        self.position = self.time = None
        if config.variant == "ranking":
            # Prefix tokens, the target, behaviours from the most recent to the oldest. The authors
            # also add one time embedding to all prefix tokens: contained in their positions.
            positions = len(self.prefix) + 1 + config.max_length
            self.position = nn.Parameter(torch.empty(positions, dim).normal_(std=_TABLE_STD))
            self.time = nn.Parameter(torch.empty(_TIME_BUCKETS + 1, dim).normal_(std=_TABLE_STD))

    def forward(self, inputs: InterestInput, recent: BehaviourSequence) -> HstuTokens:
        """All tokens of the batch."""
        return HstuTokens(
            prefix=self._requests(inputs, recent.index),
            history=self._behaviours(recent),
            target=self._candidates(inputs),
        )

    def _requests(self, inputs: InterestInput, index: SequenceIndex) -> Tensor:
        """Prefix tokens of each row of all blocks, [R, P, D]."""
        blocks = (*index.sequence_blocks, *index.candidate_blocks)
        rows = torch.cat([block.sequence for block in blocks])
        first = index.first_impression.index_select(0, rows)
        roles = {"user": inputs.user, "query": inputs.query, "scene": inputs.scene}
        tokens = [
            layer_norm(layer(roles[role].index_select(0, first)))
            for role, layer in self.prefix.items()
        ]
        if not tokens:
            return inputs.item.new_zeros(rows.shape[0], 0, inputs.item.shape[1])
        x = torch.stack(tokens, dim=1)
        return x if self.position is None else x + self.position[: len(self.prefix)]

    def _behaviours(self, recent: BehaviourSequence) -> Tensor:
        """Item and category, plus action, plus position and time, [L, D]."""
        x = layer_norm(self.content(torch.cat([recent.item, recent.category], dim=1)))
        if self.action is not None:
            x = x + self.action(recent.action)
        if self.position is not None and self.time is not None:
            place = len(self.prefix) + 1 + recency(recent.index)
            place = place.clamp(max=len(self.position) - 1)
            bucket = _time_bucket(recent.index.age)
            x = x + self.position.index_select(0, place) + self.time.index_select(0, bucket)
        return x

    def _candidates(self, inputs: InterestInput) -> Tensor:
        """Item and category, plus context, plus the placeholder of the action, [B, D]."""
        category = inputs.item_attributes[:, : self.num_categories]
        x = layer_norm(self.content(torch.cat([inputs.item, category], dim=1)))
        x = x + self.placeholder
        if self.context is not None:
            x = x + self.context(inputs.context)
        if self.position is not None and self.time is not None:
            x = x + self.position[len(self.prefix)] + self.time[0]
        return x


def _time_bucket(seconds: Tensor) -> Tensor:
    return (seconds.clamp(min=0) / 60).sqrt().long().clamp(max=_TIME_BUCKETS)
