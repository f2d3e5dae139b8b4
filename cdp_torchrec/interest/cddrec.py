"""CDDRec: conditional denoising diffusion for sequences (Wang et al., PAKDD 2024, 2304.11433).

An encoder turns a history into a condition after each behaviour; a decoder makes of the condition
and a timestep t what the next item looks like at noise level t. Training scores the sample of every
step against the noised next item (cross-divergence), and contrasts it with that item and with the
sample of a reordered view of the history, all with weight 1 / t. Serving is one call at the last
step of the reverse process, t = 1 (0 in the paper's count), without noise.

**The decoder does not see x_t**, in paper and code: the chain is no chain, every step is predicted
from the condition alone. `denoiser_sees` lets it see the state.

The public code (YuWang-1024/CDDRec) differs from its text, and ours from the code:

* its decoder attends along the first dimension, which is the batch there: the users of a batch mix.
  Here it attends along the sequence, causally, or the next item would be seen;
* it adds the noise of the posterior in serving, too, so that scores change between calls;
* its loss of the reordered view is weighted by item ids, and ranks items that the reordering has
  moved before their prediction. Here only where the view has seen the same behaviours;
* of crop, mask and reorder its draw always gives reorder: the one that is here;
* its negatives are a drawn item, and all positions of the batch (or random features of them). Here
  behaviours of one stranger stand for them, so that losses do not depend on the batch.

Left out: dropout, as everywhere here.
"""

# B impressions, S sequences, L behaviours, R rows of all blocks, W of one, N its length,
# M behaviours of a stranger, D embedding dim, T diffusion steps

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import SequenceBlock
from cdp_torchrec.diffusion.schedule import NoiseSchedule
from cdp_torchrec.interest.attention import check_heads
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.cddrec_decoder import CausalAttention, ConditionDecoder
from cdp_torchrec.interest.config.generative import CddrecConfig
from cdp_torchrec.interest.output import NORM_EPS, InterestVector
from cdp_torchrec.interest.pieces import in_pieces
from cdp_torchrec.interest.recent_sequence import NextBehaviours, keep_recent, last_state, recency
from cdp_torchrec.interest.reordering import Reordering
from cdp_torchrec.interest.sequence import BehaviourSequence, excluded, gather
from cdp_torchrec.interest.sequence_rows import sequence_keys
from cdp_torchrec.interest.stranger import next_behaviours_beside, stranger_places
from cdp_torchrec.keyed_random import Stream, further_key, keyed_normal

_POSITION_STD = 0.02


class CddrecInterest(InterestModule):
    """The interest is what the decoder makes of the last condition; zeros without history.

    A behaviour is its item; category and action type, where the log has them, are added through a
    projection. Query, context and the target do not reach the encoder.
    """

    step_weights: Tensor
    """1 / t for t = 1, ..., T, [T]."""

    def __init__(self, config: CddrecConfig, dims: InterestDims) -> None:
        super().__init__()
        dim = dims.item
        check_heads("num_heads", config.num_heads, "model.embedding_dim", dim)
        self.config = config
        side = dims.category + dims.action
        self.side = nn.Linear(side, dim, bias=False) if side else None
        self.position = nn.Parameter(torch.empty(config.max_length, dim).normal_(std=_POSITION_STD))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.blocks = nn.ModuleList(
            _Block(dim, num_heads=config.num_heads) for _ in range(config.num_layers)
        )
        self.schedule = NoiseSchedule(config.schedule, prediction_type="x0")
        self.decoder = ConditionDecoder(
            dim,
            num_heads=config.num_heads,
            schedule=self.schedule,
            sees_state=config.denoiser_sees == "condition_and_state",
        )
        self.vector = InterestVector(config, dim=dim)
        self.interest_dim = self.vector.width
        weights = {
            "ranking_loss": config.ranking_loss_weight,
            "in_view_loss": config.in_view_loss_weight,
            "cross_view_loss": config.cross_view_loss_weight,
        }
        self.loss_weights = {name: weight for name, weight in weights.items() if weight > 0}
        steps = torch.arange(1, config.schedule.num_train_timesteps + 1)
        self.register_buffer("step_weights", 1.0 / steps, persistent=False)

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the interest, [B, interest_dim]; in training mode with the losses."""
        assert inputs.recent is not None, missing("recent")
        recent = keep_recent(inputs.recent, self.config.max_length)
        attended = self.decoder.attend(self.encode(recent), recent)
        has_history = (recent.index.lengths > 0).index_select(0, recent.index.sequence)
        interest = self.decoder.denoised(last_state(attended, recent.index))
        interest = self.vector(interest * has_history.unsqueeze(1), inputs.item)
        losses = {}
        if self.training and self.loss_weights:
            assert inputs.stranger is not None, missing("stranger")
            stranger = keep_recent(inputs.stranger, self.config.max_length)
            keys = sequence_keys(inputs.key, inputs.item_id, recent.index)
            found = self._losses(attended, recent, stranger, keys)
            losses = {name: found[name] for name in self.loss_weights}
        return InterestOutput(interest=interest, losses=losses)

    def encode(self, recent: BehaviourSequence) -> Tensor:
        """Condition after each behaviour, [L, D]."""
        # As in SASRec, a position counts from the most recent behaviour.
        length = self.config.max_length
        place = length - 1 - recency(recent.index).clamp(max=length - 1)
        x = recent.item + self.position.index_select(0, place)
        if self.side is not None:
            x = x + self.side(torch.cat([recent.category, recent.action], dim=1))
        x = self.norm(x)
        for block in self.blocks:
            x = block(x, recent)
        return x

    def _losses(
        self, attended: Tensor, recent: BehaviourSequence, stranger: BehaviourSequence, keys: Tensor
    ) -> dict[str, Tensor]:
        """The three losses, sums over steps of 1 / t times a mean over behaviours, [B] each."""
        index = recent.index
        key = keys.index_select(0, index.owner) + recency(index)
        reordering = Reordering.of(
            index,
            keys=keys,
            key=key,
            share=self.config.reordered_share,
            length=self.config.max_length,
        )
        view = reordering.apply(recent)
        following = next_behaviours_beside(
            index, stranger.index, key=key, length=self.config.max_length
        )
        next_item = recent.item.index_select(0, following.positive)
        sample = self.decoder.samples(attended, further_key(key, 0))
        target = self._noised(next_item, further_key(key, 2))
        seen = self.decoder.attend(self.encode(view), view)
        of_view = self.decoder.samples(seen, further_key(key, 1))
        losses = {}
        if "ranking_loss" in self.loss_weights:
            negative = functional.pad(stranger.item, (0, 0, 0, 1))
            negative = negative.index_select(0, following.negative)
            unseen = replace(following, weight=following.weight * ~reordering.may_see_next)
            losses["ranking_loss"] = self._mean(
                ranking_loss(sample, target, negative), following, recent
            ) + self._mean(ranking_loss(of_view, target, negative), unseen, recent)
        others = self._strangers(stranger, keys, index.sequence_blocks)
        anchor = _units(sample)
        # In the view: sample and next item. Across views: sample and sample.
        pairs = {
            "in_view_loss": (target, others.target),
            "cross_view_loss": (of_view, others.sample),
        }
        for name, (partner, beside) in pairs.items():
            if name in self.loss_weights:
                per_step = self._contrast(anchor, _units(partner), beside, others, recent)
                losses[name] = self._mean(per_step, following, recent)
        return losses

    def _strangers(
        self, stranger: BehaviourSequence, keys: Tensor, blocks: Sequence[SequenceBlock]
    ) -> "_Strangers":
        """What the sequences of all blocks are told from, given their keys, int64 [S]."""
        index, sequence = stranger.index, torch.cat([block.sequence for block in blocks])
        place = stranger_places(index, sequence, count=self.config.num_stranger_behaviours)
        key = functional.pad(keys.index_select(0, index.owner) + recency(index), (0, 1))
        key = key.index_select(0, place.flatten())
        attended = self.decoder.attend(self.encode(stranger), stranger)
        sample = self.decoder.samples(gather(attended, place).flatten(0, 1), further_key(key, 3))
        target = self._noised(gather(stranger.item, place).flatten(0, 1), further_key(key, 4))
        return _Strangers(
            sample=_units(sample).unflatten(0, place.shape),
            target=_units(target).unflatten(0, place.shape),
            there=place < index.owner.shape[0],
        )

    def _mean(
        self, per_step: Tensor, following: NextBehaviours, recent: BehaviourSequence
    ) -> Tensor:
        """Weighted sum over steps [L, T], mean over the behaviours that have a next one, [B]."""
        return following.mean((per_step * self.step_weights).sum(dim=1), recent.index)

    def _noised(self, x_0: Tensor, key: Tensor) -> Tensor:
        """Items [L, D] at every noise level, [L, T, D]; the levels share a draw."""
        noise = keyed_normal(key, x_0.shape[1], Stream.TRAINING_NOISE).to(x_0.dtype).unsqueeze(1)
        signal = self.schedule.signal_scales[1:, None].to(x_0.dtype)
        sigma = self.schedule.noise_scales[1:, None].to(x_0.dtype)
        return signal * x_0.unsqueeze(1) + sigma * noise

    def _contrast(
        self,
        sample: Tensor,
        partner: Tensor,
        beside: Tensor,
        others: "_Strangers",
        recent: BehaviourSequence,
    ) -> Tensor:
        """`step_contrast` of every behaviour with its request's stranger, [L, T].

        Args:
            sample: unit vectors, [L, T * D].
            partner: of each, [L, T * D].
            beside: what `sample` is told from, [R, M, T * D].
            others: the strangers, from whose samples `partner` is told.
            recent: the behaviours.
        """
        num_steps, width = self.step_weights.shape[0], sample.shape[1]
        num_rows = [len(block.sequence) for block in recent.index.sequence_blocks]

        def contrast(
            pairs: Tensor, beside: Tensor, there: Tensor, _start: int, _stop: int
        ) -> Tensor:
            vectors = (*pairs.split(width, dim=2), *beside.split(width, dim=2))
            first, second, beside_first, beside_second = (
                x.unflatten(2, (num_steps, -1)).transpose(1, 2) for x in vectors
            )
            return step_contrast(
                first,
                second,
                beside_first,
                beside_second,
                there,
                temperature=self.config.temperature,
            ).transpose(1, 2)

        def encode(_: SequenceBlock, pairs: Tensor, *of_block: Tensor) -> Tensor:
            return in_pieces(contrast, pairs, *of_block)

        return recent.per_behaviour(
            encode,
            torch.cat([sample, partner], dim=1),
            torch.cat([beside, others.sample], dim=2).split(num_rows),
            others.there.split(num_rows),
        )


@dataclass(frozen=True)
class _Strangers:
    """The last behaviours of each row's stranger at every step, as unit vectors."""

    sample: Tensor
    """Samples of the decoder, [R, M, T * D]."""
    target: Tensor
    """The behaviours' items at the same noise level, [R, M, T * D]."""
    there: Tensor
    """Which of them there are, bool [R, M]."""


def _units(x: Tensor) -> Tensor:
    """Vectors [X, T, D] of length 1, side by side, [X, T * D]."""
    return functional.normalize(x, dim=2).flatten(1)


def ranking_loss(sample: Tensor, target: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy of the noised next item and of a clean other one, [L, T].

    Args:
        sample: [L, T, D].
        target: the next item at the noise level of each step, [L, T, D].
        negative: another item, not noised, as in the public code, [L, D].
    """
    positive = (sample * target).sum(dim=2)
    other = (sample * negative.unsqueeze(1)).sum(dim=2)
    return functional.softplus(-positive) + functional.softplus(other)


def step_contrast(
    first: Tensor,
    second: Tensor,
    beside_first: Tensor,
    beside_second: Tensor,
    mask: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """InfoNCE of pairs of unit vectors against strangers, mean of both directions, [W, T, N].

    Args:
        first: [W, T, N, D].
        second: its partner, [W, T, N, D].
        beside_first: what `first` is told from, [W, T, M, D].
        beside_second: what `second` is told from, [W, T, M, D].
        mask: which of the strangers there are, bool [W, M].
        temperature: divides the cosines.
    """
    alike = (first * second).sum(dim=3) / temperature
    missing = excluded(mask, first.dtype)[:, None, None]
    losses = []
    for anchor, others in ((first, beside_first), (second, beside_second)):
        unlike = (anchor / temperature) @ others.mT + missing
        losses.append(functional.softplus(unlike.logsumexp(dim=3) - alike))
    return (losses[0] + losses[1]) / 2


class _Block(nn.Module):
    """Block of the encoder: causal attention and a feed-forward network, each in layer norm."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.attention = CausalAttention(dim, num_heads=num_heads, eps=NORM_EPS)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: Tensor, recent: BehaviourSequence) -> Tensor:
        """[L, D] -> [L, D]."""
        x = self.attention(x, recent)
        return self.norm(x + self.feed_forward(x))
