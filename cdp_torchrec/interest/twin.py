"""Two-stage interest network with consistent search and attention (TWIN, KDD 2023, 2302.02352).

The search (CP-GSU) ranks behaviours by the very scores with which the attention (ESU) weighs them:
one set of parameters serves both. What only a behaviour has, its cross features (action type, time
since), enters the scores as a bias, so that the projection of an item does not depend on who acted
on it and can be kept for the whole corpus.
"""

# B impressions, L behaviours, W rows of a block, C candidates in a row, N behaviours in a row,
# H heads, A width of attention, F width of item and category, X cross features

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cdp_torchrec.data.history.sequence_index import CandidateBlock
from cdp_torchrec.interest.age import AgeEmbedding
from cdp_torchrec.interest.attention import (
    Retrieved,
    attend,
    everything,
    head_scores,
    item_features,
    retrieve,
    scaled,
    target_features,
    top_k_mask,
)
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.attention import TwinSearchConfig
from cdp_torchrec.interest.output import InterestVector
from cdp_torchrec.interest.sequence import BehaviourSequence, gather, gather_each, present


class TwinInterest(InterestModule):
    """The interest is the target attention over the behaviours that it weighs most.

    Without a category, items are compared by their embeddings alone; without action types, the
    time since a behaviour is its only cross feature.
    """

    def __init__(self, config: TwinSearchConfig, dims: InterestDims) -> None:
        super().__init__()
        self.config = config
        self.category_dim = dims.category
        dim, attention_dim = dims.item + dims.category, config.attention_dim
        # W^q and W^h: inherent features only, since the target has no others.
        self.query = nn.Linear(dim, attention_dim, bias=False)
        self.key = nn.Linear(dim, attention_dim, bias=False)
        self.value = nn.Linear(dim + dims.action + config.age_dim, attention_dim, bias=False)
        self.output = nn.Linear(attention_dim, dims.item, bias=False)
        # W^c: each cross feature becomes one number, here [action type, time since].
        self.action_bias = nn.Linear(dims.action, 1, bias=False) if dims.action else None
        self.age_bias = AgeEmbedding(dim=1)
        # beta, apart for each head
        num_cross = 2 if dims.action else 1
        self.cross_weight = nn.Parameter(torch.ones(num_cross, config.num_heads))
        self.age = AgeEmbedding(dim=config.age_dim)
        self.vector = InterestVector(config, dim=dims.item)
        self.interest_dim = self.vector.width

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the attended history, [B, interest_dim]."""
        assert inputs.recent is not None, missing("recent")
        sequence, norm = inputs.recent, self.config.embedding_norm
        query = self.query(target_features(inputs, category_dim=self.category_dim, norm=norm))
        features = item_features(sequence, norm=norm)
        action = scaled(sequence.action, norm)
        value = self.value(torch.cat([features, action, self.age(sequence.index.age)], dim=1))
        bias = self._bias(action, sequence)
        # Keys, biases and values side by side: one gather fetches them.
        rows = torch.cat([self.key(features), bias, value], dim=1)

        candidates = sequence.candidates(query)
        found = self._search(candidates, rows, sequence)
        widths = [self.key.out_features, self.config.num_heads, self.value.out_features]

        def attend_to_found(
            block: CandidateBlock, candidates: Tensor, found: Retrieved, rows: Tensor
        ) -> Tensor:
            keys, bias, values = rows.split(widths, dim=2)
            attended = attend(
                found.as_rows(candidates),
                keys,
                values,
                found.mask,
                num_heads=self.config.num_heads,
                bias=bias,
            )
            return attended.view_as(candidates)

        of_found = gather_each(rows, [of_block.behaviour for of_block in found])
        interest = self.output(sequence.per_candidate(attend_to_found, candidates, found, of_found))
        return InterestOutput(interest=self.vector(interest, inputs.item))

    def _bias(self, action: Tensor, sequence: BehaviourSequence) -> Tensor:
        """(K_c W^c) beta, a number for each behaviour and head, [L, H]."""
        cross = [self.age_bias(sequence.index.age)]
        if self.action_bias is not None:
            cross.append(self.action_bias(action))
        return torch.cat(cross, dim=1) @ self.cross_weight

    def _search(
        self, candidates: Sequence[Tensor], rows: Tensor, sequence: BehaviourSequence
    ) -> list[Retrieved]:
        """CP-GSU: the behaviours with the highest scores of the attention itself.

        Args:
            candidates: queries of each candidate block, [W, C, A].
            rows: keys, biases and values of all behaviours, [L, A + H + A].
            sequence: the behaviours.
        """
        num_heads, num_kept = self.config.num_heads, self.config.num_kept
        searched = rows[:, : self.key.out_features + num_heads].detach()
        found = []
        for block, with_gradient in zip(sequence.index.candidate_blocks, candidates, strict=True):
            queries = with_gradient.detach()
            if block.behaviour.shape[1] <= num_kept:
                found.append(everything(block, rows.shape[0]))
                continue
            keys, bias = gather(searched, block.behaviour).split(
                [self.key.out_features, num_heads], dim=2
            )
            if self.config.kept_by == "each_head":
                scores = head_scores(queries, keys, num_heads=num_heads, bias=bias)
                mask = present(block, rows.shape[0])[:, None, None]
                kept = top_k_mask(scores, mask, num_kept)
                found.append(Retrieved(block.behaviour, kept))
                continue
            # The sum of the heads' scores is one product over all of A.
            scale = (self.key.out_features // num_heads) ** -0.5
            scores = (queries * scale) @ keys.transpose(1, 2) + bias.sum(dim=2).unsqueeze(1)
            found.append(
                retrieve(scores, block.behaviour, num_behaviours=rows.shape[0], k=num_kept)
            )
        return found
