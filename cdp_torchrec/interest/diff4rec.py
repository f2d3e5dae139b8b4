"""Diff4Rec: sparse histories augmented by diffusion, along a curriculum (ACM MM 2023).

A diffusion between the encoder and the decoder of an autoencoder learns to restore what users
interact with; what it predicts beyond a short history is appended to it, and is a further target
of the recommender. A curriculum feeds that from easy to hard: first nothing, then the behaviours
that are surest, then more of them and with more weight.

There are no public equations and no code. Ours: the diffusion is L-DiffRec's, over item buckets,
and trains beside the recommender with losses that reach nothing else; the curriculum's first part,
when nothing is augmented, is its pre-training. Augmented behaviours are behaviours of another user
before the request, the same for any number of ranks; they stand before the history, as its oldest,
with a flag that the encoder sees. The encoder is SASRec's, and reads plain histories in serving.
"""

# B impressions, S sequences, L behaviours, X behaviours of strangers, M of one that are read,
# A augmented behaviours, R rows, V buckets, D embedding dim, T diffusion steps

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import SequenceIndex
from cdp_torchrec.diffusion.reverse import ReverseProcess
from cdp_torchrec.interest.attention import top_k
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.cluster_autoencoder import ClusterAutoencoder
from cdp_torchrec.interest.config.augmentation import Diff4RecConfig
from cdp_torchrec.interest.interaction_diffusion import ItemBuckets, diffusion_losses
from cdp_torchrec.interest.recent_sequence import keep_recent, last_state, recency
from cdp_torchrec.interest.sasrec import sasrec_encoder
from cdp_torchrec.interest.sequence import BehaviourSequence, gather
from cdp_torchrec.interest.sequence_rows import SequenceRows, sequence_keys
from cdp_torchrec.interest.stranger import (
    is_own_item,
    once_each,
    stranger_places,
)
from cdp_torchrec.keyed_random import Stream, keyed_normal, keyed_uniform

_FLAG_STD = 0.02


@dataclass(frozen=True)
class Augmentation:
    """Behaviours of a stranger that may join each history, the surest first."""

    place: Tensor
    """Places in the strangers' behaviours, X where there is none, int64 [S, A]."""
    item_id: Tensor
    """Codes of their items, -1 where there is none, int64 [S, A]."""
    allowed: Tensor
    """Which of them the curriculum allows, bool [S, A]."""

    def holds(self, item_id: Tensor, sequence: Tensor) -> Tensor:
        """Whether an item [B] is among those allowed for a sequence [B], bool [B]."""
        same = self.item_id.index_select(0, sequence) == item_id.unsqueeze(1)
        return (same & self.allowed.index_select(0, sequence)).any(dim=1)


class Diff4RecInterest(InterestModule):
    """The interest is SASRec's last state; in training often that of an augmented history."""

    timestep_weights: Tensor
    """Weight of each timestep in the denoising loss: ones, [T + 1]."""

    def __init__(self, config: Diff4RecConfig, dims: InterestDims) -> None:
        super().__init__()
        self.config = config
        self.encoder = sasrec_encoder(config, dims)
        self.flag = nn.Parameter(torch.empty(dims.item).normal_(std=_FLAG_STD))
        self.buckets = ItemBuckets(config, dims, system="Diff4Rec")
        latent_dim = config.num_clusters * config.latent_per_cluster
        self.autoencoder = ClusterAutoencoder(
            num_clusters=self.buckets.num_clusters,
            num_buckets=self.buckets.num_buckets,
            latent_dim=latent_dim,
        )
        self.process = ReverseProcess(config.schedule, config.denoiser, dim=latent_dim)
        self.register_buffer(
            "timestep_weights", torch.ones(len(self.process.steps) + 1), persistent=False
        )
        self.interest_dim = self.encoder.interest_dim
        self.loss_weights = {
            "denoise_loss": config.denoise_loss_weight,
            "reconstruction_loss": config.reconstruction_loss_weight,
            "kl_loss": config.kl_loss_weight,
        }
        if config.objective_loss_weight > 0:
            self.loss_weights["objective_loss"] = config.objective_loss_weight

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the last state, [B, interest_dim]."""
        if not self.training:
            return self.encoder(inputs)
        assert inputs.recent is not None, missing("recent")
        assert inputs.stranger is not None, missing("stranger")
        assert inputs.progress is not None
        recent = keep_recent(inputs.recent, self.config.max_length)
        index, stranger = recent.index, keep_recent(inputs.stranger, self.config.max_length)
        keys = sequence_keys(inputs.key, inputs.item_id, index)
        curriculum = self.curriculum(inputs.progress)
        predicted, losses = self._diffuse(index, keys)
        augmentation = self.augment(
            predicted, index, stranger, curriculum.index_select(0, index.first_impression)
        )
        # Nobody may learn to expect the very item that is to be scored.
        usable = augmentation.allowed.any(dim=1).index_select(0, index.sequence)
        usable = usable & ~augmentation.holds(inputs.item_id, index.sequence)
        plain = last_state(self.encoder.encode(recent), index)
        read = keyed_uniform(keys, Stream.AUGMENTED) < self.config.augmented_share
        read = usable & read.index_select(0, index.sequence)
        augmented = self.read_augmented(recent, stranger, augmentation)
        interest = augmented.where(read.unsqueeze(1), plain)
        if "objective_loss" in self.loss_weights:
            loss = self._objective_loss(plain, index, stranger, augmentation)
            losses["objective_loss"] = curriculum * usable * loss
        monitors = {}
        if self.reports:
            augmented_share = read.to(curriculum.dtype).mean()
            monitors = {"curriculum": curriculum.mean(), "augmented": augmented_share}
        return InterestOutput(
            interest=self.encoder.vector(interest, inputs.item), losses=losses, monitors=monitors
        )

    def _diffuse(self, index: SequenceIndex, keys: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Predicted logits of the buckets of each sequence, [S, V], and the losses, [B] each.

        Args:
            index: the histories.
            keys: their names, int64 [S].
        """
        rows = SequenceRows.of(index)
        interactions = self.buckets.interactions(index, rows, torch.ones_like(index.age))
        codes = self.autoencoder.encode(interactions)
        key = rows.keys(keys)
        per_row = diffusion_losses(
            self.process,
            self.autoencoder,
            interactions,
            codes,
            key=key,
            timestep_weights=self.timestep_weights,
        )
        losses = {
            name: (loss * rows.present).index_select(0, rows.of_impression)
            for name, loss in per_row.items()
        }
        row = rows.of_impression.index_select(0, index.first_impression)
        return self.predict(codes[0], key).index_select(0, row), losses

    def curriculum(self, progress: Tensor) -> Tensor:
        """How far the curriculum is, in [0, 1], from the passes over the training data, [B]."""
        start, end = self.config.curriculum_start, self.config.curriculum_end
        return ((progress - start) / (end - start)).clamp(0.0, 1.0)

    @torch.no_grad()
    def predict(self, codes: Tensor, key: Tensor) -> Tensor:
        """Logits of all buckets, [R, V], restored from noised codes [R, Z]; int64 keys [R].

        The noise is another one in each epoch: augmentations are diverse.
        """
        noise = keyed_normal(key, codes.shape[1], Stream.START_NOISE).to(codes.dtype)
        return self.autoencoder.decode(self.process.chain(self.process.last_state(codes, noise)))

    def augment(
        self,
        predicted: Tensor,
        index: SequenceIndex,
        stranger: BehaviourSequence,
        curriculum: Tensor,
    ) -> Augmentation:
        """The surest behaviours of the strangers, as many as the curriculum allows.

        Args:
            predicted: logits of the buckets for each sequence, [S, V].
            index: the histories.
            stranger: behaviours that may join them: all before the request.
            curriculum: how far it is, [S].
        """
        sequences = torch.arange(index.lengths.shape[0], device=predicted.device)
        place = stranger_places(
            stranger.index, sequences, count=self.config.num_stranger_behaviours
        )
        code, category = (
            functional.pad(codes, (0, 1), value=-1)[place]
            for codes in (stranger.index.item_id, stranger.index.category_id)
        )
        offered = (code >= 0) & once_each(code) & ~is_own_item(code, sequences, index)
        bucket = self.buckets.of(code.clamp(min=0), category.clamp(min=0))
        scores = predicted.gather(1, bucket)
        count = min(self.config.max_augmented, place.shape[1])
        # top_k has no order. Here the surest come first, of equals the most recent.
        found = top_k(scores, offered, count)[0].sort(dim=1, descending=True).values
        surest = scores.gather(1, found).masked_fill(~offered.gather(1, found), -torch.inf)
        found = found.gather(1, surest.sort(dim=1, descending=True, stable=True).indices)
        kept = offered.gather(1, found)
        rank = torch.arange(count, device=place.device)
        allowed = rank < (curriculum * count).floor().unsqueeze(1)
        is_sparse = (index.lengths > 0) & (index.lengths < self.config.sparse_below)
        return Augmentation(
            place=place.gather(1, found).where(kept, stranger.item.shape[0]),
            item_id=code.gather(1, found).where(kept, -1),
            allowed=allowed & kept & is_sparse.unsqueeze(1),
        )

    def read_augmented(
        self, recent: BehaviourSequence, stranger: BehaviourSequence, augmentation: Augmentation
    ) -> Tensor:
        """Last state of the histories with their augmented behaviours before them, [B, D]."""
        index, (sequences, count) = recent.index, augmentation.place.shape
        first, num_places = sequences * count, sequences * count + recent.item.shape[0]
        # The surest stand nearest to the history.
        place, allowed = augmentation.place.flip(1), augmentation.allowed.flip(1)
        slot = torch.arange(first, device=place.device).view_as(place).where(allowed, num_places)
        joined = BehaviourSequence(
            item=_joined(stranger.item, place, recent.item),
            category=_joined(stranger.category, place, recent.category),
            action=_joined(stranger.action, place, recent.action),
            index=replace(
                index,
                sequence_blocks=tuple(
                    replace(
                        block,
                        behaviour=torch.cat(
                            [slot.index_select(0, block.sequence), block.behaviour + first], dim=1
                        ),
                    )
                    for block in index.sequence_blocks
                ),
            ),
        )
        before = torch.arange(count - 1, -1, -1, device=place.device)
        order = torch.cat([(index.lengths.unsqueeze(1) + before).flatten(), recency(index)])
        x = self.encoder.embed(joined, order)
        x = torch.cat([x[:first] + self.flag, x[first:]])
        return last_state(self.encoder.transform(x, joined)[first:], index)

    def _objective_loss(
        self,
        state: Tensor,
        index: SequenceIndex,
        stranger: BehaviourSequence,
        augmentation: Augmentation,
    ) -> Tensor:
        """Negative log likelihood of the augmented behaviours among the stranger's, [B].

        Args:
            state: last state of the plain history, [B, D].
            index: the histories.
            stranger: behaviours that may be named.
            augmentation: those that are the targets.
        """
        places = stranger_places(
            stranger.index, index.sequence, count=self.config.num_stranger_behaviours
        )
        code = functional.pad(stranger.index.item_id, (0, 1), value=-1)[places]
        offered = (code >= 0) & once_each(code)
        scores = (gather(stranger.item, places) @ state.unsqueeze(2)).squeeze(2)
        total = scores.masked_fill(~offered, torch.finfo(scores.dtype).min).logsumexp(dim=1)
        target = gather(stranger.item, augmentation.place).index_select(0, index.sequence)
        own = (target @ state.unsqueeze(2)).squeeze(2)
        weight = augmentation.allowed.index_select(0, index.sequence).to(own.dtype)
        losses = (total.unsqueeze(1) - own) * weight
        return losses.sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


def _joined(stranger: Tensor, place: Tensor, own: Tensor) -> Tensor:
    """Rows of strangers at places [S, A], then the own ones, [S * A + L, D]."""
    return torch.cat([gather(stranger, place).flatten(0, 1), own])
