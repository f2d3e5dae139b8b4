"""LONGER: a transformer over merged behaviours, whose keys a request's candidates share.

Chai et al., RecSys 2025, arXiv 2505.04421. K adjacent behaviours become one token, after a small
transformer among themselves ("Token Merge", InnerTrans). Global tokens (the candidate, the request,
learned ones) and the m most recent merged tokens attend to all merged tokens in the first layer
("cross-causal attention"), then among themselves ("self-causal attention").

In the paper's mask a token sees itself and what comes after it in the order [global tokens;
history from its newest token to its oldest]. So no merged token sees a global one: the keys and
values of the history do not depend on the candidate and are made once per request ("KV cache
serving").
"""

# B impressions, L behaviours, M places of merged tokens, W rows of a block, G merged tokens in a
# row, X <= G of them as queries, C candidates in a row, P global tokens of a request, D width of an
# item, K behaviours in a token, A = K D width of a token, F width of a behaviour's features

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from cdp_torchrec.data.history.sequence_index import CandidateBlock
from cdp_torchrec.interest.age import AgeEmbedding
from cdp_torchrec.interest.attention import check_heads
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.long_sequence import LongerConfig
from cdp_torchrec.interest.merged_sequence import MergedIndex, merge_index, most_recent, scatter
from cdp_torchrec.interest.output import InterestVector, layer_norm
from cdp_torchrec.interest.recent_sequence import keep_recent, recency
from cdp_torchrec.interest.sequence import BehaviourSequence, gather_each
from cdp_torchrec.interest.transformer_layer import TransformerLayer, layers_of

_TABLE_STD = 0.02


@dataclass(frozen=True)
class HistoryMemory:
    """What candidates attend to, whichever they are: made once per request."""

    layers: tuple[Tensor, ...]
    """Keys and values of the merged tokens, [M, 2 A] for each layer; from the second layer on of
    the m most recent of each sequence alone."""
    groups: tuple[Tensor, ...]
    """Places in [0, M) of the merged tokens of each row, [W, G] for each candidate block."""


class LongerInterest(InterestModule):
    """The interest is the candidate's own global token after the last layer.

    A behaviour is its item, category, action type and age, as far as the log has them. User, query
    and scene are one global token, read from any impression of the request; a log without them
    leaves the learned tokens. Context can differ within a request (position on the page), so it
    joins the candidate's token. Without history a candidate attends to the global tokens alone.
    """

    def __init__(self, config: LongerConfig, dims: InterestDims) -> None:
        super().__init__()
        dim, width = dims.item, dims.item * config.group_size
        check_heads("num_heads", config.num_heads, "group_size * model.embedding_dim", width)
        check_heads("inner_heads", config.inner_heads, "model.embedding_dim", dim)
        self.max_length = config.max_length
        self.group_size = config.group_size
        most_groups = (config.max_length + config.group_size - 1) // config.group_size
        self.num_queries = min(config.num_queries, most_groups)
        self.behaviours = _Behaviours(config, dims)
        self.inner = None
        if config.group_size > 1:
            self.inner = TransformerLayer(dim, num_heads=config.inner_heads)
        request = dims.user + dims.query + dims.scene
        self.request = nn.Linear(request, width) if request else None
        self.cls = None
        if config.num_cls_tokens > 0:
            cls = torch.empty(config.num_cls_tokens, width)
            self.cls = nn.Parameter(cls.normal_(std=_TABLE_STD))
        self.candidate = nn.Linear(dim + dims.item_attributes + dims.context, width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, num_heads=config.num_heads) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, dim)
        self.vector = InterestVector(config, dim=dim)
        self.interest_dim = self.vector.width

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the candidates' tokens, [B, interest_dim]."""
        assert inputs.recent is not None, missing("recent")
        recent = keep_recent(inputs.recent, self.max_length)
        interest = self.attend(inputs, recent, self.remember(recent))
        return InterestOutput(interest=self.vector(interest, inputs.item))

    def remember(self, recent: BehaviourSequence) -> HistoryMemory:
        """Keys and values of the history in every layer."""
        index = merge_index(recent.index, group_size=self.group_size)
        tokens = self.merge(recent, index)
        queries = tuple(
            most_recent(groups, self.num_queries, index.size) for groups in index.sequence_groups
        )
        states = gather_each(tokens, queries)
        visible = index.sequence_groups
        layers = layers_of(self.layers)
        memory = [layers[0].memory(tokens)]
        for layer, following in pairwise(layers):
            seen = gather_each(memory[-1], visible)
            states = [
                layer(state, keys_values, _causal(state, groups, index.size))
                for state, keys_values, groups in zip(states, seen, visible, strict=True)
            ]
            projected = [following.memory(state) for state in states]
            memory.append(scatter(projected, queries, size=index.size))
            visible = queries
        return HistoryMemory(layers=tuple(memory), groups=index.candidate_groups)

    def merge(self, recent: BehaviourSequence, index: MergedIndex) -> Tensor:
        """Merged tokens ("Token Merge", InnerTrans), [M, A]; places of padding are zeros."""
        behaviours = self.behaviours(recent)

        def merged(x: Tensor, members: Tensor) -> Tensor:
            if self.inner is not None:
                present = (members < behaviours.shape[0]).flatten(0, 1)
                x = x.flatten(0, 1)
                x = self.inner(x, self.inner.memory(x), present.unsqueeze(1))
                # The oldest group may have fewer than K behaviours.
                x = x.masked_fill(~present.unsqueeze(2), 0.0)
            num_rows, num_groups, group_size = members.shape
            return x.view(num_rows, num_groups, group_size * behaviours.shape[1])

        grouped = gather_each(behaviours, index.members)
        return scatter(
            list(map(merged, grouped, index.members)), index.sequence_groups, size=index.size
        )

    def attend(
        self, inputs: InterestInput, recent: BehaviourSequence, memory: HistoryMemory
    ) -> Tensor:
        """The candidates' tokens after the last layer, [B, D].

        Args:
            inputs: candidates and requests.
            recent: which candidates belong to which history.
            memory: of these histories.
        """
        parts = [inputs.item, inputs.item_attributes, inputs.context]
        candidates = layer_norm(self.candidate(torch.cat(parts, dim=1)))
        layers, size = layers_of(self.layers), memory.layers[0].shape[0]
        queries = tuple(most_recent(groups, self.num_queries, size) for groups in memory.groups)
        # Of each layer, of each block: groups of the history, and their keys and values.
        places = [memory.groups, *[queries] * (len(layers) - 1)]
        seen = [gather_each(*of_layer) for of_layer in zip(memory.layers, places, strict=True)]

        def encode(
            block: CandidateBlock,
            candidates: Tensor,
            places: tuple[Tensor, ...],
            seen: tuple[Tensor, ...],
        ) -> Tensor:
            first = recent.index.first_impression
            x = torch.cat([candidates, *self._request_tokens(inputs, first, block)], dim=1)
            num_candidates = candidates.shape[1]
            for layer, groups, of_history in zip(layers, places, seen, strict=True):
                keys_values = torch.cat([layer.memory(x), of_history], dim=1)
                mask = _global_mask(x, num_candidates, groups, size)
                if layer is layers[-1]:  # only candidates are read
                    x, mask = x[:, :num_candidates], mask[:, :num_candidates]
                x = layer(x, keys_values, mask)
            return x

        encoded = recent.per_candidate(
            encode,
            recent.candidates(candidates),
            list(zip(*places, strict=True)),
            list(zip(*seen, strict=True)),
        )
        return self.output(self.norm(encoded))

    def _request_tokens(
        self, inputs: InterestInput, first_impression: Tensor, block: CandidateBlock
    ) -> Iterator[Tensor]:
        """Global tokens of the requests of a block: request, learned ones; [W, P, A] in all."""
        if self.request is not None:
            first = first_impression.index_select(0, block.sequence)
            roles = [inputs.user, inputs.query, inputs.scene]
            features = torch.cat([role.index_select(0, first) for role in roles], dim=1)
            yield layer_norm(self.request(features)).unsqueeze(1)
        if self.cls is not None:
            yield self.cls.expand(block.sequence.shape[0], *self.cls.shape)


class _Behaviours(nn.Module):
    """Tokens of single behaviours ("Input Generation")."""

    def __init__(self, config: LongerConfig, dims: InterestDims) -> None:
        super().__init__()
        self.age = AgeEmbedding(dim=config.age_dim)
        side = dims.category + dims.action + config.age_dim
        self.content = nn.Linear(dims.item + side, dims.item)
        position = torch.empty(config.max_length, dims.item)
        self.position = nn.Parameter(position.normal_(std=_TABLE_STD))

    def forward(self, recent: BehaviourSequence) -> Tensor:
        """Item with side information and age, plus the place from the newest one, [L, D]."""
        side = [recent.category, recent.action, self.age(recent.index.age)]
        x = layer_norm(self.content(torch.cat([recent.item, *side], dim=1)))
        place = recency(recent.index).clamp(max=self.position.shape[0] - 1)
        return x + self.position.index_select(0, place)


def _causal(queries: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """What the last X of G merged tokens see: themselves and older ones, bool [W, X, G].

    Args:
        queries: [W, X, A].
        groups: places of the merged tokens, [W, G]; `num_groups` where there is none.
        num_groups: M.
    """
    column = torch.arange(groups.shape[1], device=groups.device)
    own = torch.arange(queries.shape[1], device=groups.device)
    own = own + (groups.shape[1] - queries.shape[1])
    causal = column <= own.unsqueeze(1)
    return causal & (groups < num_groups).unsqueeze(1)


def _global_mask(x: Tensor, num_candidates: int, groups: Tensor, num_groups: int) -> Tensor:
    """What global tokens see, bool [W, C + P, C + P + G].

    A candidate sees itself, the request's tokens and the history, but no other candidate; a token
    of the request itself, those after it and the history.

    Args:
        x: global tokens, candidates first, [W, C + P, A].
        num_candidates: C.
        groups: places of the merged tokens, [W, G]; `num_groups` where there is none.
        num_groups: M.
    """
    row = torch.arange(x.shape[1], device=x.device)
    later = row >= row.unsqueeze(1)
    itself = row == row.unsqueeze(1)
    among = (later & (row >= num_candidates)) | itself
    history = (groups < num_groups).unsqueeze(1).expand(-1, x.shape[1], -1)
    return torch.cat([among.expand(x.shape[0], -1, -1), history], dim=2)
