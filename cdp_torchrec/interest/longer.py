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
from cdp_torchrec.interest.sequence import BehaviourSequence, gather
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
        states = [gather(tokens, places) for places in queries]
        visible = index.sequence_groups
        layers = layers_of(self.layers)
        memory = [layers[0].memory(tokens)]
        for layer, following in pairwise(layers):
            states = [
                layer(state, gather(memory[-1], groups), _causal(state, groups, index.size))
                for state, groups in zip(states, visible, strict=True)
            ]
            projected = [following.memory(state) for state in states]
            memory.append(scatter(projected, queries, size=index.size))
            visible = queries
        return HistoryMemory(layers=tuple(memory), groups=index.candidate_groups)

    def merge(self, recent: BehaviourSequence, index: MergedIndex) -> Tensor:
        """Merged tokens ("Token Merge", InnerTrans), [M, A]; places of padding are zeros."""
        behaviours = self.behaviours(recent)

        def merged(members: Tensor) -> Tensor:
            num_rows, num_groups, group_size = members.shape
            members = members.flatten(0, 1)
            x = gather(behaviours, members)
            if self.inner is not None:
                present = members < behaviours.shape[0]
                x = self.inner(x, self.inner.memory(x), present.unsqueeze(1))
                # The oldest group may have fewer than K behaviours.
                x = x.masked_fill(~present.unsqueeze(2), 0.0)
            return x.view(num_rows, num_groups, group_size * behaviours.shape[1])

        return scatter(
            [merged(members) for members in index.members], index.sequence_groups, size=index.size
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
        groups = iter(memory.groups)

        def encode(block: CandidateBlock) -> Tensor:
            places = next(groups)
            x = torch.cat(
                [
                    gather(candidates, block.impression),
                    *self._request_tokens(inputs, recent.index.first_impression, block),
                ],
                dim=1,
            )
            num_candidates = block.impression.shape[1]
            layers = layers_of(self.layers)
            for depth, (layer, of_layer) in enumerate(zip(layers, memory.layers, strict=True)):
                if depth == 1:
                    places = most_recent(places, self.num_queries, of_layer.shape[0])
                keys = torch.cat([layer.memory(x), gather(of_layer, places)], dim=1)
                mask = _global_mask(x, num_candidates, places, of_layer.shape[0])
                if layer is layers[-1]:  # only candidates are read
                    x, mask = x[:, :num_candidates], mask[:, :num_candidates]
                x = layer(x, keys, mask)
            return x

        return self.output(self.norm(recent.per_candidate(encode)))

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
