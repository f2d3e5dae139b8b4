"""Variational autoencoder of interactions, one encoder for each cluster of items (L-DiffRec)."""

# R rows, V buckets, K clusters, Z latent width of all clusters

import torch
from torch import Tensor, nn
from torch.nn import functional


class ClusterAutoencoder(nn.Module):
    """Interactions to codes and back, with one layer each as published.

    Clusters are of one size, so that all encoders are one batched product. A decoder of one layer
    reads the codes of all clusters.
    """

    def __init__(self, *, num_clusters: int, num_buckets: int, latent_dim: int) -> None:
        super().__init__()
        self.num_clusters = num_clusters
        bucket_dim, code_dim = num_buckets // num_clusters, 2 * latent_dim // num_clusters
        self.encoder_weight = nn.Parameter(torch.empty(num_clusters, bucket_dim, code_dim))
        self.encoder_bias = nn.Parameter(torch.zeros(num_clusters, code_dim))
        self.decoder = nn.Linear(latent_dim, num_buckets)
        for weight in [*self.encoder_weight, self.decoder.weight]:
            nn.init.xavier_normal_(weight)
        nn.init.zeros_(self.decoder.bias)

    def encode(self, interactions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the codes, [R, Z] each.

        Both in (-1, 1): the published encoder ends in its activation.

        Args:
            interactions: [R, V], a cluster's buckets beside each other.
        """
        clusters = interactions.unflatten(1, (self.num_clusters, -1)).transpose(0, 1)
        hidden = torch.baddbmm(self.encoder_bias.unsqueeze(1), clusters, self.encoder_weight)
        mean, log_variance = hidden.tanh().transpose(0, 1).chunk(2, dim=2)
        return mean.flatten(1), log_variance.flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        """Logits of the interactions, [R, V], from codes [R, Z]."""
        return self.decoder(codes)


def multinomial_loss(logits: Tensor, interactions: Tensor) -> Tensor:
    """Negative log likelihood of the interactions, [R], as a mean over what they count."""
    total = interactions.sum(dim=1).clamp(min=torch.finfo(logits.dtype).tiny)
    return -(functional.log_softmax(logits, dim=1) * interactions).sum(dim=1) / total


def kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence of the codes from a standard normal, [R]."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(dim=1)
