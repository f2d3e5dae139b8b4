"""MARM: target attention in layers, whose keys are cached outputs (Lv et al., arXiv 2411.09425).

One layer of target attention costs O(n D), L layers of self-attention O(L n^2 D). Here layer l
attends to what layer l - 1 gave for each past item when that item was itself the target: computed
then, kept, and read for O(L n D) in all.

A kept output is a constant: no gradient goes into it. Training reads what a cache would hold by
computing it anew, a causal self-attention without gradient; so it is of the parameters of that
step, where the authors' is of those of the day on which the item was the target. An artifact
computes it anew, too; `OutputCache` keeps it.
"""

# B impressions, L behaviours, W rows of a block, N behaviours in a row, C candidates in a row,
# H heads, A width of a token

import torch
from torch import Tensor, nn

from cdp_torchrec.data.history.sequence_index import CandidateBlock, SequenceBlock
from cdp_torchrec.interest.age import log_forgetting
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.long_sequence import MarmConfig
from cdp_torchrec.interest.output import InterestVector, layer_norm
from cdp_torchrec.interest.pieces import in_pieces
from cdp_torchrec.interest.recent_sequence import keep_recent
from cdp_torchrec.interest.sequence import BehaviourSequence, present
from cdp_torchrec.interest.transformer_layer import TransformerLayer, layers_of


class MarmInterest(InterestModule):
    """The interest is the target's token after the last layer.

    A target is its item and category, whether it is a candidate now or was one: an action type is
    known of a behaviour only afterwards, so it joins the keys. Time is that from a behaviour to the
    target: a head weighs by (1 + hours) ** -slope, so an output is the same whenever it is computed
    (but for the float32 of an age: a second beyond 194 days). Without history the target attends to
    nothing.
    """

    def __init__(self, config: MarmConfig, dims: InterestDims) -> None:
        super().__init__()
        self.max_length = config.max_length
        self.num_categories = dims.category
        self.target = nn.Linear(dims.item + dims.category, config.width)
        self.action = nn.Linear(dims.action, config.width, bias=False) if dims.action else None
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, num_heads=config.num_heads)
            for _ in range(config.num_layers)
        )
        # The heads of a layer start between no forgetting and a weight that halves in an hour.
        slopes = torch.linspace(0.0, 1.0, config.num_heads)
        self.slopes = nn.Parameter(slopes.repeat(config.num_layers, 1))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, dims.item)
        self.vector = InterestVector(config, dim=dims.item)
        self.interest_dim = self.vector.width

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the targets' tokens, [B, interest_dim]."""
        assert inputs.recent is not None, missing("recent")
        recent = keep_recent(inputs.recent, self.max_length * len(self.layers))
        return self.interest(inputs, self.attend(inputs, recent, self.outputs(recent))[-1])

    def interest(self, inputs: InterestInput, token: Tensor) -> InterestOutput:
        """What the tower gets of the targets' tokens after the last layer, [B, A]."""
        return InterestOutput(interest=self.vector(self.output(self.norm(token)), inputs.item))

    @torch.no_grad()
    def outputs(self, recent: BehaviourSequence) -> tuple[Tensor, ...]:
        """What each layer but the last gave for each behaviour as the target, [L, A] each.

        A behaviour attends to the n behaviours before it, as a candidate does. So layer l depends
        on l * n of them: for the last n behaviours of a sequence all of them are there.
        """
        outputs = []
        x = self._targets(recent.item, recent.category)
        for layer, slopes in zip(layers_of(self.layers)[:-1], self.slopes, strict=False):
            x = self._behaviours_as_targets(layer, slopes, x, recent)
            outputs.append(x)
        return tuple(outputs)

    def attend(
        self, inputs: InterestInput, recent: BehaviourSequence, outputs: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """The candidates' tokens after each layer, [B, A] each; the last one is the interest.

        Args:
            inputs: the candidates.
            recent: behaviours, of which the n most recent ones are read.
            outputs: of these behaviours, computed or cached; no gradient goes into them.
        """
        recent = keep_recent(recent, self.max_length)
        x = self._targets(inputs.item, inputs.item_attributes[:, : self.num_categories])
        states = [self._targets(recent.item, recent.category), *(o.detach() for o in outputs)]
        tokens = []
        for layer, slopes, state in zip(layers_of(self.layers), self.slopes, states, strict=True):
            memory = self._memory(layer, state, recent)
            x = _attend(layer, slopes, x, memory, recent)
            tokens.append(x)
        return tokens

    def _behaviours_as_targets(
        self, layer: TransformerLayer, slopes: Tensor, x: Tensor, recent: BehaviourSequence
    ) -> Tensor:
        """The layer's outputs for all behaviours, of which x are those of the layer before."""
        memory = self._memory(layer, x, recent)

        def attend(targets: Tensor, seen: Tensor, kept: Tensor, start: int, stop: int) -> Tensor:
            """Targets in columns [start, stop) to the behaviours that they see."""
            first = max(0, start - self.max_length)
            keys_values, age = seen[:, first:stop, :-1], seen[:, first:stop, -1]
            column = torch.arange(first, stop, device=x.device)
            distance = column[start - first :].unsqueeze(1) - column
            before = (distance > 0) & (distance <= self.max_length)
            elapsed = age.unsqueeze(1) - age[:, start - first :].unsqueeze(2)
            bias = log_forgetting(elapsed).unsqueeze(1) * slopes.view(-1, 1, 1)
            return layer(targets, keys_values, before & kept[:, None, first:stop], bias=bias)

        def encode(block: SequenceBlock, rows: Tensor) -> Tensor:
            targets, seen = rows.split([x.shape[1], memory.shape[1]], dim=2)
            return in_pieces(attend, targets, seen, present(block, x.shape[0]))

        return recent.per_behaviour(encode, torch.cat([x, memory], dim=1))

    def _memory(self, layer: TransformerLayer, state: Tensor, recent: BehaviourSequence) -> Tensor:
        """Keys, values and age of behaviours, [L, 2 A + 1].

        Args:
            layer: that reads them.
            state: what the behaviours' items gave as targets, [L, A]; what was done joins it.
            recent: the behaviours.
        """
        if self.action is not None:
            state = state + self.action(recent.action)
        return torch.cat([layer.memory(state), recent.index.age.unsqueeze(1)], dim=1)

    def _targets(self, item: Tensor, category: Tensor) -> Tensor:
        """Items as targets of the first layer, [..., A]."""
        return layer_norm(self.target(torch.cat([item, category], dim=1)))


def _attend(
    layer: TransformerLayer, slopes: Tensor, x: Tensor, memory: Tensor, recent: BehaviourSequence
) -> Tensor:
    """Tokens [B, A] of candidates after a layer that attends to all behaviours, [B, A]."""

    def attend(block: CandidateBlock, targets: Tensor, seen: Tensor) -> Tensor:
        keys_values, age = seen[:, :, :-1], seen[:, :, -1]
        mask = present(block, memory.shape[0]).unsqueeze(1)
        bias = log_forgetting(age).unsqueeze(2) * slopes
        return layer(targets, keys_values, mask, bias=bias)

    return recent.per_candidate(attend, recent.candidates(x), recent.behaviours(memory))
