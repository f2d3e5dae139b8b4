"""Diffusion recommender model (DiffRec, Wang et al., SIGIR 2023) as an interest module.

DiffRec reconstructs a user's interactions with all items from their noised self, and ranks items
by the reconstruction. A vocabulary of millions is out of its reach, so items are hashed into
buckets, each within the cluster of its category. Three forms, two switches: DiffRec (`space =
"vocabulary"`), L-DiffRec ("latent": an encoder for each cluster, diffusion between encoder and
decoder), T-DiffRec (`interaction_weight = "recency"`), and LT-DiffRec (both).

The state depends on the history alone: it is computed once for each request, and only the target
item's entry is read for an impression. In training as in serving the tower receives the result of
the deterministic chain from the clean state, as in all published settings.

Left out: importance sampling of timesteps from the last losses, whose draws would depend on the
order of batches and on the number of ranks, the annealing of L-DiffRec's loss weights, and dropout.
"""

# B impressions, R rows (row 0: no behaviours), L behaviours, V buckets, K clusters,
# Z latent width of all clusters, D embedding dim, T diffusion steps

import torch
from torch import Tensor, nn

from cdp_torchrec.data.history.sequence_index import SequenceIndex
from cdp_torchrec.diffusion.reverse import ReverseProcess, elbo_weights
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.cluster_autoencoder import ClusterAutoencoder
from cdp_torchrec.interest.config.generative import DiffRecConfig
from cdp_torchrec.interest.interaction_diffusion import ItemBuckets, diffusion_losses
from cdp_torchrec.interest.output import InterestVector
from cdp_torchrec.interest.recent_sequence import recency
from cdp_torchrec.interest.sequence_rows import SequenceRows, sequence_keys


class DiffRecInterest(InterestModule):
    """The interest is a projection of the reconstruction, beside the target item's share of it.

    The tower receives the interest's parts, the reconstruction in the target item's bucket, and
    its mean over the item's cluster. Zeros for an empty history. User, query, action, time and
    embeddings of behaviours are not used; without categories there is one cluster of all buckets.
    """

    timestep_weights: Tensor
    """Weight of each timestep in the denoising loss, [T + 1]."""

    def __init__(self, config: DiffRecConfig, dims: InterestDims) -> None:
        super().__init__()
        self.config = config
        self.buckets = ItemBuckets(config, dims, system="DiffRec")
        self.autoencoder = None
        state_dim = self.buckets.num_buckets
        if config.space == "latent":
            state_dim = config.num_clusters * config.latent_per_cluster
            self.autoencoder = ClusterAutoencoder(
                num_clusters=self.buckets.num_clusters,
                num_buckets=self.buckets.num_buckets,
                latent_dim=state_dim,
            )
        self.process = ReverseProcess(config.schedule, config.denoiser, dim=state_dim)
        # Linear in the last hidden layer, as the reconstruction itself is.
        self.projection = nn.Linear(state_dim, dims.item, bias=False)
        self.vector = InterestVector(config, dim=dims.item)
        self.interest_dim = self.vector.width + 2
        self.loss_weights = {"denoise_loss": config.denoise_loss_weight}
        if self.autoencoder is not None:
            self.loss_weights["reconstruction_loss"] = config.reconstruction_loss_weight
            self.loss_weights["kl_loss"] = config.kl_loss_weight
        weights = torch.tensor(elbo_weights(self.process.schedule), dtype=torch.float32)
        if config.loss_weighting == "uniform":
            weights = torch.ones_like(weights)
        self.register_buffer("timestep_weights", weights, persistent=False)

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts, [B, interest_dim]; in training mode with the losses of each request.

        An impression carries its request's loss, whatever else is in the batch.
        """
        name = "gated" if self.config.history_filter == "category" else "recent"
        sequence = inputs.gated if name == "gated" else inputs.recent
        assert sequence is not None, missing(name)
        rows = SequenceRows.of(sequence.index)
        interactions = self._interactions(sequence.index, rows)
        present = rows.present.unsqueeze(1)
        codes = None if self.autoencoder is None else self.autoencoder.encode(interactions)
        x_0 = interactions if codes is None else codes[0]
        x_0_hat = self.process.chain(x_0)
        decoded = x_0_hat if self.autoencoder is None else self.autoencoder.decode(x_0_hat)
        # Per request so far; per impression from here on.
        interest = (self.projection(x_0_hat) * present).index_select(0, rows.of_impression)
        num_buckets, num_clusters = self.buckets.num_buckets, self.buckets.num_clusters
        bucket = self.buckets.of(inputs.item_id, inputs.category_id)
        score = (decoded * present).flatten()[rows.of_impression * num_buckets + bucket]
        means = (decoded * present).unflatten(1, (num_clusters, -1)).mean(dim=2)
        cluster = inputs.category_id % num_clusters
        cluster_score = means.flatten()[rows.of_impression * num_clusters + cluster]
        parts = [self.vector(interest, inputs.item), torch.stack([score, cluster_score], dim=1)]
        losses = {}
        if self.training:
            group = inputs.category_id if self.config.history_filter == "category" else None
            keys = sequence_keys(inputs.key, inputs.item_id, sequence.index, group=group)
            per_row = diffusion_losses(
                self.process,
                self.autoencoder,
                interactions,
                codes,
                key=rows.keys(keys),
                timestep_weights=self.timestep_weights,
            )
            losses = {
                name: (loss * rows.present).index_select(0, rows.of_impression)
                for name, loss in per_row.items()
            }
        return InterestOutput(interest=torch.cat(parts, dim=1), losses=losses)

    def _interactions(self, index: SequenceIndex, rows: SequenceRows) -> Tensor:
        """x_0 of each row, [R, V]: what was interacted with, zero elsewhere."""
        weights = torch.ones_like(index.age)
        if self.config.interaction_weight == "recency":
            weights = recency_weights(index, oldest_weight=self.config.oldest_weight)
        return self.buckets.interactions(index, rows, weights)


def recency_weights(index: SequenceIndex, *, oldest_weight: float) -> Tensor:
    """Weight of each behaviour, [L]: evenly from `oldest_weight` for the oldest to 1 (T-DiffRec).

    The order is that of time. A single behaviour is the newest and weighs 1; in the published code
    it weighs w_min, as the first of a range of one.
    """
    steps = (index.lengths.index_select(0, index.owner) - 1).clamp(min=1)
    return 1.0 - (1.0 - oldest_weight) * recency(index).to(index.age.dtype) / steps
