"""CaDiRec: views of a history by context-aware diffusion (Cui et al., CIKM 2024).

In training some behaviours of a history are masked. A denoiser that sees all the others restores
them from noise, and names the item that it thinks of (rounding). Two views of the history, each
with other items at the masked places, are to have like states in SASRec's encoder, unlike those of
another user. All of that trains the encoder and the embeddings; the encoder alone is served.

The paper's negatives are a drawn item and the other sequences of the batch, its rounding is over
the whole vocabulary. Here one other user, drawn by key for each request, stands for all of them:
losses do not depend on what shares a batch, so not on the number of ranks. Items are the history's
own and the stranger's; every state of the stranger is that of one of its earlier histories.

Left out: dropout, as everywhere here, and the code's noise of standard deviation 0.15 on every
embedding, the unmasked ones too, which the paper says are not noised.
"""

# B impressions, S sequences, L behaviours, X behaviours of strangers, W rows of a block, N its
# length, K items that rounding may name, V views, M behaviours of a stranger, D embedding dim

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import SequenceBlock
from cdp_torchrec.diffusion.schedule import NoiseSchedule
from cdp_torchrec.interest.attention import check_heads, top_k
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.sequential import CadirecConfig
from cdp_torchrec.interest.eager import is_eager_on_cpu
from cdp_torchrec.interest.recent_sequence import keep_recent, last_state, recency
from cdp_torchrec.interest.sasrec import next_item_loss, sasrec_encoder
from cdp_torchrec.interest.sequence import BehaviourSequence, gather
from cdp_torchrec.interest.sequence_denoiser import (
    SequenceDenoiser,
    contrastive_loss,
    rounding_scores,
)
from cdp_torchrec.interest.sequence_rows import sequence_keys
from cdp_torchrec.interest.stranger import (
    next_behaviours_beside,
    once_each,
    stranger_places,
)
from cdp_torchrec.keyed_random import Stream, keyed_normal, keyed_timesteps, keyed_uniform

_VIEWS = (Stream.FIRST_VIEW, Stream.SECOND_VIEW)


class CadirecInterest(InterestModule):
    """The interest is SASRec's; the losses are CaDiRec's.

    The denoiser sees items alone. In a view a replaced item brings its own category along, the
    action of the behaviour stays.
    """

    def __init__(self, config: CadirecConfig, dims: InterestDims) -> None:
        super().__init__()
        check_heads("denoiser_heads", config.denoiser_heads, "model.embedding_dim", dims.item)
        self.config = config
        self.encoder = sasrec_encoder(config, dims)
        self.schedule = NoiseSchedule(config.schedule, prediction_type="x0")
        self.denoiser = SequenceDenoiser(
            dim=dims.item,
            num_layers=config.denoiser_layers,
            num_heads=config.denoiser_heads,
            max_distance=config.max_distance,
            num_train_timesteps=config.schedule.num_train_timesteps,
        )
        self.interest_dim = self.encoder.interest_dim
        weights = {
            "next_item_loss": config.next_item_loss_weight,
            "contrastive_loss": config.contrastive_loss_weight,
            "rounding_loss": config.rounding_loss_weight,
            "denoise_loss": config.denoise_loss_weight,
        }
        self.loss_weights = {name: weight for name, weight in weights.items() if weight > 0}

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the encoder's last state, [B, interest_dim]."""
        if not self.training:
            return self.encoder(inputs)
        assert inputs.recent is not None, missing("recent")
        assert inputs.stranger is not None, missing("stranger")
        recent = keep_recent(inputs.recent, self.config.max_length)
        stranger = keep_recent(inputs.stranger, self.config.max_length)
        states = self.encoder.encode(recent)
        interest = self.encoder.vector(last_state(states, recent.index), inputs.item)
        keys = sequence_keys(inputs.key, inputs.item_id, recent.index)
        losses = self._losses(states, recent, stranger, keys)
        return InterestOutput(
            interest=interest, losses={name: losses[name] for name in self.loss_weights}
        )

    def _losses(
        self, states: Tensor, recent: BehaviourSequence, stranger: BehaviourSequence, keys: Tensor
    ) -> dict[str, Tensor]:
        """All losses that have a weight, [B] each, given the requests' keys, int64 [S]."""
        index, losses = recent.index, {}
        key = keys.index_select(0, index.owner) + recency(index)
        if "next_item_loss" in self.loss_weights:
            following = next_behaviours_beside(
                index, stranger.index, key=key, length=self.config.max_length
            )
            negatives = functional.pad(stranger.item, (0, 0, 0, 1))
            losses["next_item_loss"] = next_item_loss(
                states, recent, following, negatives=negatives
            )
        masked = self.masked(recent, key)
        x_0 = self.restore(recent, masked, keys=keys, key=key)
        if "denoise_loss" in self.loss_weights:
            error = (x_0 - recent.item).square().mean(dim=1, keepdim=True)
            losses["denoise_loss"] = _mean_of_masked(error, masked, recent)
        error, chosen = self.round(x_0, masked, recent, stranger, key)
        losses["rounding_loss"] = _mean_of_masked(error, masked, recent)
        if "contrastive_loss" in self.loss_weights:
            first, second = (
                last_state(self.encoder.encode(view), index)
                for view in views(recent, stranger, chosen, masked)
            )
            places = stranger_places(
                stranger.index, index.sequence, count=self.config.num_stranger_behaviours
            )
            others = gather(self.encoder.encode(_detached(stranger)), places)
            mask = places < stranger.item.shape[0]
            loss = contrastive_loss(
                first, second, others, mask, temperature=self.config.temperature
            )
            # Views of no history are no views.
            has_history = index.lengths.index_select(0, index.sequence) > 0
            losses["contrastive_loss"] = loss * has_history
        return losses

    def masked(self, recent: BehaviourSequence, key: Tensor) -> Tensor:
        """Which behaviours are masked, bool [L], among those that the encoder reads."""
        within = recency(recent.index) < self.config.max_length
        return (keyed_uniform(key, Stream.MASKED_BEHAVIOUR) < self.config.mask_rate) & within

    def restore(
        self, recent: BehaviourSequence, masked: Tensor, *, keys: Tensor, key: Tensor
    ) -> Tensor:
        """Vectors that the denoiser predicts, [L, D], from one random timestep of each sequence.

        Args:
            recent: the behaviours.
            masked: which of them are noised; the others are what they are, bool [L].
            keys: of the sequences, int64 [S].
            key: of the behaviours, int64 [L].
        """
        num_timesteps = self.schedule.num_train_timesteps
        timesteps = keyed_timesteps(keys, num_timesteps, Stream.TRAINING_TIMESTEP)
        timesteps = timesteps.index_select(0, recent.index.owner)
        noise = keyed_normal(key, recent.item.shape[1], Stream.TRAINING_NOISE)
        x_t = self.noised(
            recent.item, masked, noise=noise.to(recent.item.dtype), timesteps=timesteps
        )
        return self.denoiser(x_t, timesteps, recent)

    def noised(self, item: Tensor, masked: Tensor, *, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Items [L, D], of which the masked ones are noised."""
        return self.schedule.add_noise(item, noise, timesteps).where(masked.unsqueeze(1), item)

    def round(
        self,
        x_0: Tensor,
        masked: Tensor,
        recent: BehaviourSequence,
        stranger: BehaviourSequence,
        key: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """How surely the vector of each masked behaviour names its item, and what else it may name.

        Args:
            x_0: denoised vectors, [L, D].
            masked: which behaviours are masked, bool [L].
            recent: the behaviours.
            stranger: behaviours whose items may be named, too.
            key: of the behaviours, int64 [L].

        Returns:
            Negative log likelihood of the item, [L, 1], and places of the items drawn for the
            views, int64 [L, V], in the behaviours of strangers and then in the own ones; what they
            are for the others is of no use.
        """
        read = _only(recent, masked)
        items = torch.cat([stranger.item, recent.item])
        ids = torch.cat([stranger.index.item_id, recent.index.item_id])
        draws = torch.stack([keyed_uniform(key, view) for view in _VIEWS], dim=1)
        rounded = [
            self._round_block(
                block, x_0, _Offered.of(own, items, ids, stranger, self.config), draws
            )
            for own, block in zip(
                recent.index.sequence_blocks, read.index.sequence_blocks, strict=True
            )
        ]
        log_total = read.in_order([of_block[0] for of_block in rounded])
        chosen = read.in_order([of_block[1] for of_block in rounded])
        own = (x_0 * recent.item).sum(dim=1, keepdim=True)
        return log_total - own, chosen

    def _round_block(
        self, block: SequenceBlock, x_0: Tensor, offered: "_Offered", draws: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log of the sum over all items, [W, N, 1], and places of those drawn, [W, N, V]."""
        scores = rounding_scores(gather(x_0, block.behaviour), offered.item, offered.mask)
        count = min(self.config.num_alternatives, scores.shape[2])
        found, kept = top_k(scores, offered.mask.unsqueeze(1), count)
        # In the order of places, so that a draw means the same in a block of any length.
        found = found.masked_fill(~kept, scores.shape[2]).sort(dim=2).values
        number = kept.sum(dim=2, keepdim=True)
        drawn = (gather(draws, block.behaviour) * number).long().clamp(max=count - 1)
        column = found.gather(2, drawn).clamp(max=scores.shape[2] - 1)
        place = offered.place.gather(1, column.flatten(1)).view_as(column)
        return scores.logsumexp(dim=2, keepdim=True), place


@dataclass(frozen=True)
class _Offered:
    """Items that the vectors of a block may be rounded to, each of them once."""

    place: Tensor
    """Places in the behaviours of strangers and then the own ones, int64 [W, K]."""
    item: Tensor
    """[W, K, D]"""
    mask: Tensor
    """Which there are, bool [W, K]."""

    @classmethod
    def of(
        cls,
        block: SequenceBlock,
        items: Tensor,
        ids: Tensor,
        stranger: BehaviourSequence,
        config: CadirecConfig,
    ) -> "_Offered":
        """Items of strangers and own ones, [X + L, D], and their codes [X + L], of a block."""
        places = stranger_places(
            stranger.index, block.sequence, count=config.num_stranger_behaviours
        )
        missing = places == stranger.item.shape[0]
        own = block.behaviour + stranger.item.shape[0]
        place = torch.cat([places.masked_fill(missing, items.shape[0]), own], dim=1)
        code = functional.pad(ids, (0, 1), value=-1)[place]
        mask = once_each(code) & (place < items.shape[0])
        return cls(place=place, item=gather(items, place), mask=mask)


def views(
    recent: BehaviourSequence, stranger: BehaviourSequence, chosen: Tensor, masked: Tensor
) -> tuple[BehaviourSequence, ...]:
    """The history with other items at its masked places, once for each view; without gradient.

    Args:
        recent: the behaviours.
        stranger: behaviours whose items may stand in.
        chosen: places of items in the strangers' behaviours and then the own ones, int64 [L, V].
        masked: where they stand in, bool [L].
    """
    num_others, num_own = stranger.item.shape[0], recent.item.shape[0]
    itself = torch.arange(num_own, device=chosen.device) + num_others
    item = torch.cat([stranger.item, recent.item]).detach()
    category = torch.cat([stranger.category, recent.category]).detach()
    plain = _detached(recent)
    return tuple(
        replace(plain, item=item.index_select(0, place), category=category.index_select(0, place))
        for place in chosen.where(masked.unsqueeze(1), itself.unsqueeze(1)).unbind(1)
    )


def _detached(sequence: BehaviourSequence) -> BehaviourSequence:
    """The behaviours without gradient: as in CaDiRec's code, views train the encoder alone."""
    return replace(
        sequence,
        item=sequence.item.detach(),
        category=sequence.category.detach(),
        action=sequence.action.detach(),
    )


def _only(recent: BehaviourSequence, masked: Tensor) -> BehaviourSequence:
    """The behaviours, of which blocks show the masked ones alone, given bool [L].

    How many these are depends on the data; where that may not be, blocks stay as they are.
    """
    if not is_eager_on_cpu(recent.item):
        return recent

    def shown(behaviour: Tensor) -> Tensor:
        hit = functional.pad(masked, (0, 1))[behaviour]
        found = hit.sort(dim=1, descending=True, stable=True)
        most = int(found.values.any(dim=0).sum())
        return behaviour.masked_fill(~hit, masked.shape[0]).gather(1, found.indices[:, :most])

    blocks = tuple(
        replace(block, behaviour=shown(block.behaviour)) for block in recent.index.sequence_blocks
    )
    return replace(recent, index=replace(recent.index, sequence_blocks=blocks))


def _mean_of_masked(losses: Tensor, masked: Tensor, recent: BehaviourSequence) -> Tensor:
    """Mean of losses [L, 1] over the masked behaviours of each impression's sequence, [B]."""
    weight = masked.unsqueeze(1).to(losses.dtype)
    total, count = recent.sum(torch.cat([losses * weight, weight], dim=1)).unbind(1)
    return (total / count.clamp(min=1.0)).index_select(0, recent.index.sequence)
