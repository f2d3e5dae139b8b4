"""Query-dominant interest network (QIN, CIKM 2023, arXiv 2310.06444), for search.

A cascade finds the behaviours that matter: first those relevant to the query, then, among them,
those close to the target item (RSU). Attention runs apart over items and over their attributes, and
the engagement of each past behaviour decides how much either counts (FAU). The paper's equations
and code are not public: sizes are ours, and so is the substitute for its frozen multimodal vectors,
the current embeddings without gradient and a query projected among them by a relevance loss.
"""

# B impressions, S sequences, L behaviours, W rows of a block, C candidates in a row, N behaviours
# in a row, F width of item and category, A width of attention

import logging
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import CandidateBlock
from cdp_torchrec.interest.age import AgeEmbedding
from cdp_torchrec.interest.attention import (
    Retrieved,
    attend,
    item_features,
    scaled,
    search_by_product,
    target_features,
    top_k,
)
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.attention import QinConfig
from cdp_torchrec.interest.output import InterestVector
from cdp_torchrec.interest.sequence import BehaviourSequence, gather, gather_each, present
from cdp_torchrec.keyed_random import Stream, keyed_timesteps

logger = logging.getLogger(__name__)

_GATE_HIDDEN_DIM = 16
_MAX_DRAW = 2**30


class QinInterest(InterestModule):
    """The interest is the fused attention over the behaviours that the cascade finds.

    Without a query, the search is by the target alone. Without a category, there are no attributes
    and the item attention stands alone. Without action types, engagement is the time since a
    behaviour.
    """

    def __init__(self, config: QinConfig, dims: InterestDims) -> None:
        super().__init__()
        self.config = config
        self.category_dim = dims.category
        self.query_search: QuerySearch | None = None
        if dims.query:
            self.query_search = QuerySearch(config, dims)
            self.loss_weights = {"relevance_loss": config.relevance_loss_weight}
        else:
            logger.warning("qin: the log has no query, so behaviours are searched by target alone")
        if dims.category == 0:
            logger.warning("qin: the log has no category, so there is no attribute attention")
        self.attention = FusedAttention(config, dims)
        self.vector = InterestVector(config, dim=dims.item)
        self.interest_dim = self.vector.width

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the fused attention, [B, interest_dim]."""
        assert inputs.recent is not None, missing("recent")
        sequence, norm, losses = inputs.recent, self.config.embedding_norm, {}
        # The search is frozen: the click loss does not reach its vectors.
        target = _unit(target_features(inputs, category_dim=self.category_dim, norm=norm))
        behaviours = _unit(item_features(sequence, norm=norm))
        if self.query_search is not None:
            if self.training:
                losses["relevance_loss"] = self.query_search.relevance_loss(
                    inputs, target, behaviours
                )
            sequence = self.query_search(inputs.query, sequence, behaviours)
        queries, rows = self.attention.queries(inputs), self.attention.rows(sequence)

        search = search_by_product(target, behaviours, k=self.config.num_kept)
        found = search(sequence)

        def attend_to_found(
            block: CandidateBlock, candidates: Tensor, found: Retrieved, rows: Tensor
        ) -> Tensor:
            attended = self.attention(found.as_rows(candidates), rows, found.mask)
            return attended.view(*candidates.shape[:2], -1)

        attended = sequence.per_candidate(
            attend_to_found,
            sequence.candidates(queries),
            found,
            gather_each(rows, [of_block.behaviour for of_block in found]),
        )
        interest = self.attention.output(attended)
        return InterestOutput(interest=self.vector(interest, inputs.item), losses=losses)


class QuerySearch(nn.Module):
    """First stage of the search: behaviours relevant to the query, once per request."""

    def __init__(self, config: QinConfig, dims: InterestDims) -> None:
        super().__init__()
        self.num_kept = config.num_query_kept
        self.temperature = config.relevance_temperature
        self.projection = nn.Linear(dims.query, dims.item + dims.category)

    def forward(
        self, query: Tensor, sequence: BehaviourSequence, behaviours: Tensor
    ) -> BehaviourSequence:
        """The same behaviours, of which candidates see those closest to their query.

        Args:
            query: [B, D_query].
            sequence: all behaviours.
            behaviours: their unit vectors, [L, F].
        """
        index, num_behaviours = sequence.index, behaviours.shape[0]
        queries = self.direction(query.index_select(0, index.first_impression)).detach()
        kept = index.lengths.new_full((index.lengths.shape[0], self.num_kept), num_behaviours)
        long = [b for b in index.sequence_blocks if b.behaviour.shape[1] > self.num_kept]
        if long:
            # Candidates are in other blocks than sequences: a short one may stand among long ones.
            for block in index.sequence_blocks:
                missing = self.num_kept - block.behaviour.shape[1]
                if missing >= 0:
                    everything = functional.pad(block.behaviour, (missing, 0), value=num_behaviours)
                    kept = kept.index_copy(0, block.sequence, everything)
        of_blocks = gather_each(behaviours, [b.behaviour for b in long]) if long else []
        for block, rows in zip(long, of_blocks, strict=True):
            of_rows = queries.index_select(0, block.sequence).double().unsqueeze(2)
            cosine = (rows @ of_rows).squeeze(2)
            places, exists = top_k(cosine, present(block, num_behaviours), self.num_kept)
            found = block.behaviour.gather(1, places).masked_fill(~exists, num_behaviours)
            # Oldest first again.
            kept = kept.index_copy(0, block.sequence, found.sort(dim=1).values)
        blocks = tuple(
            replace(block, behaviour=kept.index_select(0, block.sequence))
            if block.behaviour.shape[1] > self.num_kept
            else block
            for block in index.candidate_blocks
        )
        return replace(sequence, index=replace(index, candidate_blocks=blocks))

    def direction(self, query: Tensor) -> Tensor:
        """Unit vectors of queries among those of items, [X, F]; trains the projection alone."""
        return functional.normalize(self.projection(query.detach()), dim=1)

    def relevance_loss(self, inputs: InterestInput, target: Tensor, behaviours: Tensor) -> Tensor:
        """How much closer a query is to the item shown for it than to a behaviour at random, [B].

        Pairwise logistic loss with one of the user's own behaviours, 0 where there is none: most of
        a history has to do with other queries.

        Args:
            inputs: with the queries and the whole history.
            target: unit vectors of the items, [B, F].
            behaviours: unit vectors of the behaviours, [L, F].
        """
        assert inputs.recent is not None, missing("recent")
        index = inputs.recent.index
        lengths = index.lengths.index_select(0, index.sequence)
        ends = index.lengths.cumsum(0).index_select(0, index.sequence)
        draw = keyed_timesteps(inputs.key, _MAX_DRAW, Stream.RELEVANCE_NEGATIVE)
        draw = draw % lengths.clamp(min=1)
        place = (ends - 1 - draw).where(lengths > 0, behaviours.shape[0])
        difference = target - gather(behaviours, place.unsqueeze(1)).squeeze(1)
        direction = self.direction(inputs.query)
        closer = (direction * difference.to(direction.dtype)).sum(dim=1) / self.temperature
        return functional.softplus(-closer) * (lengths > 0).to(closer.dtype)


class FusedAttention(nn.Module):
    """Attention over items and over attributes, fused by engagement (FAU).

    out = sum_j w_j a_j^item V^item_j + (1 - w_j) a_j^attribute V^attribute_j with a gate w_j of the
    engagement of behaviour j. The two are the two halves of the heads of one attention.
    """

    def __init__(self, config: QinConfig, dims: InterestDims) -> None:
        super().__init__()
        self.norm = config.embedding_norm
        self.category_dim = dims.category
        self.dim = config.attention_dim
        fields = [dims.item, dims.category] if dims.category else [dims.item]
        self.num_heads = config.num_heads * len(fields)
        self.query, self.key, self.value = (
            nn.ModuleList(nn.Linear(width, self.dim, bias=False) for width in fields)
            for _ in range(3)
        )
        self.age = AgeEmbedding(dim=config.age_dim)
        self.gate = nn.Sequential(
            nn.Linear(dims.action + config.age_dim, _GATE_HIDDEN_DIM),
            nn.ReLU(),
            nn.Linear(_GATE_HIDDEN_DIM, 1),
            nn.Sigmoid(),
        )
        self.output = nn.Linear(self.dim, dims.item, bias=False)

    def queries(self, inputs: InterestInput) -> Tensor:
        """Queries of the target's fields, [B, A or 2 A]."""
        fields = [inputs.item, inputs.item_attributes[:, : self.category_dim]]
        return torch.cat(self._project(self.query, fields), dim=1)

    def rows(self, sequence: BehaviourSequence) -> Tensor:
        """Keys of the fields of each behaviour, then their gated values, [L, 2 A or 4 A]."""
        fields = [sequence.item, sequence.category]
        engagement = [scaled(sequence.action, self.norm), self.age(sequence.index.age)]
        gate = self.gate(torch.cat(engagement, dim=1))
        values = self._project(self.value, fields)
        gated = [value * weight for value, weight in zip(values, [gate, 1 - gate], strict=False)]
        return torch.cat([*self._project(self.key, fields), *gated], dim=1)

    def forward(self, candidates: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
        """Sum of the attentions, [W, C, A], of queries [W, C, .] over rows [W, N, .]."""
        keys, values = rows.chunk(2, dim=2)
        attended = attend(candidates, keys, values, mask, num_heads=self.num_heads)
        return attended.unflatten(2, (-1, self.dim)).sum(dim=2)

    def _project(self, layers: nn.ModuleList, fields: list[Tensor]) -> list[Tensor]:
        # Without a category there is one layer, of the item.
        return [
            layer(scaled(field, self.norm)) for layer, field in zip(layers, fields, strict=False)
        ]


def _unit(x: Tensor) -> Tensor:
    """Unit vectors [X, F] in float64, for scores of a search."""
    return functional.normalize(x.detach().double(), dim=1)
