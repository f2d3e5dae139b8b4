"""DIEN: interests extracted by a GRU and evolved towards the target (Zhou et al., AAAI 2019).

The GRU runs once per request. The AUGRU runs once per candidate and cannot be parallel in time;
all that does not depend on its state (input gates, attention) is computed beforehand.
"""

# B impressions, L behaviours, W rows of a block, N its length, C candidates in a row,
# X width of a behaviour's input, H hidden width

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import CandidateBlock, SequenceBlock
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.sequential import DienConfig
from cdp_torchrec.interest.output import InterestVector
from cdp_torchrec.interest.recent_sequence import keep_recent, next_behaviours
from cdp_torchrec.interest.recurrence import Recurrence
from cdp_torchrec.interest.sequence import BehaviourSequence, masked_softmax, present


class DienInterest(InterestModule):
    """The interest is the last AUGRU state, projected to D; without history a learned vector.

    A behaviour is its item, category and action type; category and action may be missing. The
    target is item and category.
    """

    def __init__(self, config: DienConfig, dims: InterestDims) -> None:
        super().__init__()
        self.max_length = config.max_length
        self.num_categories = dims.category
        hidden = config.hidden_dim
        width = dims.item + dims.category + dims.action
        self.extractor = Recurrence(width, hidden, augru=config.augru)
        self.attention = nn.Linear(dims.item + dims.category, hidden, bias=False)
        self.evolution = Recurrence(hidden, hidden, augru=config.augru)
        self.project = nn.Linear(hidden, dims.item)
        self.vector = InterestVector(config, dim=dims.item)
        self.interest_dim = self.vector.width
        self.auxiliary = None
        if config.auxiliary_loss_weight > 0:
            self.loss_weights = {"auxiliary_loss": config.auxiliary_loss_weight}
            self.auxiliary = _auxiliary_network(hidden + width, config.auxiliary_layer_sizes)

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the evolved interest, [B, interest_dim]."""
        assert inputs.recent is not None, missing("recent")
        recent = keep_recent(inputs.recent, self.max_length)
        x = torch.cat([recent.item, recent.category, recent.action], dim=1)
        states = self.extract(x, recent)
        category = inputs.item_attributes[:, : self.num_categories]
        target = torch.cat([inputs.item, category], dim=1)
        interest = self.project(self.evolve(states, target, recent))
        losses = {}
        if self.training and self.auxiliary is not None:
            losses["auxiliary_loss"] = self._auxiliary_loss(states, x, recent, inputs.key)
        return InterestOutput(interest=self.vector(interest, inputs.item), losses=losses)

    def extract(self, x: Tensor, recent: BehaviourSequence) -> Tensor:
        """GRU state after each behaviour (eqs. 2-5), [L, X] -> [L, H]."""

        def run(block: SequenceBlock, inputs: Tensor) -> Tensor:
            return self.extractor.states(inputs, mask=present(block, x.shape[0]).to(x.dtype))

        return recent.per_behaviour(run, self.extractor.input(x))

    def evolve(self, states: Tensor, target: Tensor, recent: BehaviourSequence) -> Tensor:
        """Last AUGRU state of each candidate (eqs. 14-16), [B, H]; zeros without history."""
        queries = recent.candidates(self.attention(target))
        inputs = recent.behaviours(self.evolution.input(states))

        def run(block: CandidateBlock, query: Tensor, keys: Tensor, inputs: Tensor) -> Tensor:
            mask = present(block, states.shape[0])
            scores = torch.bmm(query, keys.transpose(1, 2))
            return self.evolution.last_state(
                inputs,
                mask=mask.to(states.dtype),
                attention=masked_softmax(scores, mask.unsqueeze(1)),
            )

        return recent.per_candidate(run, queries, recent.behaviours(states), inputs)

    def _auxiliary_loss(
        self, states: Tensor, x: Tensor, recent: BehaviourSequence, key: Tensor
    ) -> Tensor:
        """Binary cross-entropy of next behaviour and negative (eq. 7), [B]."""
        assert self.auxiliary is not None
        following = next_behaviours(recent.index, key=key, length=self.max_length)
        positive, negative = (
            self.auxiliary(torch.cat([states, x.index_select(0, places)], dim=1)).squeeze(1)
            for places in (following.positive, following.negative)
        )
        losses = functional.softplus(-positive) + functional.softplus(negative)
        return following.mean(losses, recent.index)


def _auxiliary_network(width: int, layer_sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in layer_sizes:
        layers += [nn.Linear(width, size), nn.Sigmoid()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))
