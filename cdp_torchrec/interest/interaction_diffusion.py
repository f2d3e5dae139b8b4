"""Interactions with items in buckets, and what diffusion learns of them (DiffRec, Diff4Rec)."""

# R rows (row 0: no behaviours), L behaviours, V buckets, K clusters, Z latent width,
# T diffusion steps

import logging

from torch import Tensor

from cdp_torchrec.data.history.sequence_index import SequenceIndex
from cdp_torchrec.diffusion.reverse import ReverseProcess
from cdp_torchrec.interest.base import InterestDims
from cdp_torchrec.interest.cluster_autoencoder import (
    ClusterAutoencoder,
    kl_loss,
    multinomial_loss,
)
from cdp_torchrec.interest.config.generative import ItemBucketsConfig
from cdp_torchrec.interest.sequence_rows import SequenceRows
from cdp_torchrec.keyed_random import Stream, keyed_normal, keyed_timesteps

logger = logging.getLogger(__name__)


class ItemBuckets:
    """Items hashed into buckets, each within the cluster of its category."""

    def __init__(self, config: ItemBucketsConfig, dims: InterestDims, *, system: str) -> None:
        """Share buckets out; a log without categories has one cluster of all, and is told so.

        Args:
            config: numbers.
            dims: says whether there are categories.
            system: whose name the log shows.
        """
        self.num_buckets = config.num_clusters * config.buckets_per_cluster
        self.num_clusters = config.num_clusters
        if dims.category == 0 and config.num_clusters > 1:
            logger.warning(
                "%s clusters items by category, which the dataset lacks: "
                "one cluster of %d buckets instead",
                system,
                self.num_buckets,
            )
            self.num_clusters = 1

    def of(self, item_id: Tensor, category_id: Tensor) -> Tensor:
        """Bucket in [0, V) of each item; those of a cluster lie side by side."""
        per_cluster = self.num_buckets // self.num_clusters
        return category_id % self.num_clusters * per_cluster + item_id % per_cluster

    def interactions(self, index: SequenceIndex, rows: SequenceRows, weights: Tensor) -> Tensor:
        """What each row interacted with, [R, V]: the largest weight [L] in a bucket, else zero."""
        places = rows.of_behaviour * self.num_buckets
        places = places + self.of(index.item_id, index.category_id)
        empty = weights.new_zeros(rows.present.shape[0] * self.num_buckets)
        return empty.scatter_reduce(0, places, weights, "amax").view(-1, self.num_buckets)


def diffusion_losses(
    process: ReverseProcess,
    autoencoder: ClusterAutoencoder | None,
    interactions: Tensor,
    codes: tuple[Tensor, Tensor] | None,
    *,
    key: Tensor,
    timestep_weights: Tensor,
) -> dict[str, Tensor]:
    """Losses of each row, [R] each: of the denoiser, and of the autoencoder if there is one.

    Args:
        process: the denoiser.
        autoencoder: whose codes it denoises; None: it denoises the interactions themselves.
        interactions: [R, V].
        codes: mean and log variance of the codes, [R, Z] each, if there is an autoencoder.
        key: names each row, int64 [R].
        timestep_weights: weight of each timestep in the denoising loss, [T + 1].
    """
    x_0, losses = interactions, {}
    if codes is not None:
        mean, log_variance = codes
        noise = keyed_normal(key, mean.shape[1], Stream.LATENT_NOISE)
        x_0 = mean + (0.5 * log_variance).exp() * noise
        losses["kl_loss"] = kl_loss(mean, log_variance)
    timesteps = keyed_timesteps(key, len(process.steps), Stream.TRAINING_TIMESTEP)
    noise = keyed_normal(key, x_0.shape[1], Stream.TRAINING_NOISE)
    x_0_hat = process.one_step(x_0, noise=noise, timesteps=timesteps)
    error = (x_0_hat - x_0).square().mean(dim=1)
    losses["denoise_loss"] = timestep_weights[timesteps] * error
    if autoencoder is not None:
        decoded = autoencoder.decode(x_0_hat)
        losses["reconstruction_loss"] = multinomial_loss(decoded, interactions)
    return losses
