"""What can be believed of simulated tastes from behaviours, as mixtures of Gaussians.

One belief is of one user in one category. Its state is the user's own part of the taste that all
categories share, which never changes, and the changeable part of this category, which drifts and
jumps. A mixture of a few Gaussians says when the last jump was (a Gaussian sum filter); behaviours
are taken in by moment matching over points of each Gaussian (Kotecha and Djuric, Gaussian particle
filtering and Gaussian sum particle filtering, IEEE Transactions on Signal Processing, 2003).
"""

# R beliefs, H Gaussians of a mixture, P points of a Gaussian, A latent attributes; the state is
# the own part and the changeable part, 2 A

from typing import Self

import numpy as np

from cdp_torchrec.data.synthetic.config import SyntheticConfig
from cdp_torchrec.data.synthetic.world import Floats, Ints

NUM_GAUSSIANS = 3
"""No jump, a jump at some time, and a jump since: one more is made and two are merged each day."""


class TasteBeliefs:
    """Beliefs of tastes without the part of the user's segment, which is known."""

    def __init__(self, config: SyntheticConfig, count: int) -> None:
        """Begin with what holds for everybody, standard normal parts.

        Args:
            config: the world.
            count: number of beliefs, R.
        """
        size = 2 * config.num_attributes
        self._config = config
        self.weight = np.zeros((count, NUM_GAUSSIANS))
        self.weight[:, 0] = 1.0
        self.mean = np.zeros((count, NUM_GAUSSIANS, size))
        self.covariance = np.broadcast_to(np.eye(size), (*self.mean.shape, size)).copy()

    def take(self, rows: Ints) -> Self:
        """A copy of some beliefs."""
        part = object.__new__(type(self))
        part._config = self._config
        part.weight, part.mean, part.covariance = (
            values[rows] for values in (self.weight, self.mean, self.covariance)
        )
        return part

    def put(self, rows: Ints, part: Self) -> None:
        """Replace some beliefs."""
        self.weight[rows] = part.weight
        self.mean[rows] = part.mean
        self.covariance[rows] = part.covariance

    def advance(self, days: Ints) -> None:
        """Let the changeable part drift and jump overnight.

        Args:
            days: nights that pass for each belief, [R].
        """
        c, dims = self._config, self._config.num_attributes
        nights = days[:, None].astype(np.float64)
        kept = (1.0 - c.taste_drift**2) ** (0.5 * nights)  # correlation with the old taste
        stays = (1.0 - c.taste_jump_rate) ** nights
        jumped_mean, jumped_covariance = collapse(self.weight, self.mean, self.covariance)
        factor = np.ones((len(days), 2 * dims))
        factor[:, dims:] = kept
        self.mean *= factor[:, None]
        self.covariance *= (factor[:, None] * factor[:, :, None])[:, None]
        changeable = np.arange(dims, 2 * dims)
        self.covariance[..., changeable, changeable] += (1.0 - kept**2)[..., None]
        if not c.taste_jump_rate:
            return
        # Whoever jumped has a new changeable part, and the own part as before.
        jumped_mean[:, dims:] = 0.0
        jumped_covariance[:, dims:] = 0.0
        jumped_covariance[:, :, dims:] = 0.0
        jumped_covariance[:, changeable, changeable] = 1.0
        self._append_and_merge(stays * self.weight, 1.0 - stays, jumped_mean, jumped_covariance)

    def _append_and_merge(
        self, weight: Floats, new_weight: Floats, new_mean: Floats, new_covariance: Floats
    ) -> None:
        """Take in one Gaussian more, and make one of the two least likely."""
        rows = np.arange(len(weight))[:, None]
        weight = np.concatenate([weight, new_weight], axis=1)
        mean = np.concatenate([self.mean, new_mean[:, None]], axis=1)
        covariance = np.concatenate([self.covariance, new_covariance[:, None]], axis=1)
        order = np.argsort(weight, axis=1)
        least, rest = order[:, :2], order[:, 2:]
        pair = weight[rows, least]
        total = pair.sum(axis=1, keepdims=True)
        share = np.where(total > 0.0, pair, 0.5) / np.where(total > 0.0, total, 1.0)
        merged = collapse(share, mean[rows, least], covariance[rows, least])
        self.weight = np.concatenate([total, weight[rows, rest]], axis=1)
        self.mean = np.concatenate([merged[0][:, None], mean[rows, rest]], axis=1)
        self.covariance = np.concatenate([merged[1][:, None], covariance[rows, rest]], axis=1)

    def taste(self) -> tuple[Floats, Floats]:
        """Mean [R, H, A] and covariance [R, H, A, A] of the taste, without the segment's part."""
        c, dims = self._config, self._config.num_attributes
        own, changeable = np.sqrt(0.5 * c.shared_taste), np.sqrt(1.0 - c.shared_taste)
        mean = own * self.mean[..., :dims] + changeable * self.mean[..., dims:]
        part = self._taste_covariance()
        return mean, own * part[..., :dims, :] + changeable * part[..., dims:, :]

    def _taste_covariance(self) -> Floats:
        """Covariance of the state and the taste, [R, H, 2 A, A]."""
        c, dims = self._config, self._config.num_attributes
        own, changeable = np.sqrt(0.5 * c.shared_taste), np.sqrt(1.0 - c.shared_taste)
        return own * self.covariance[..., :dims] + changeable * self.covariance[..., dims:]

    def learn(self, points: Floats, root: Floats, likelihood: Floats) -> None:
        """Take in a behaviour each.

        Args:
            points: of a standard normal, the same number for each Gaussian, [R, H, P, A]; their
                tastes are mean + root @ point.
            root: Cholesky factors of the tastes' covariances, [R, H, A, A].
            likelihood: of the behaviour under the taste of each point, [R, H, P].
        """
        mean_likelihood = likelihood.mean(axis=-1)
        self.weight = self.weight * mean_likelihood
        self.weight /= self.weight.sum(axis=1, keepdims=True)
        share = likelihood / likelihood.sum(axis=-1, keepdims=True)
        shift = (share[..., None, :] @ points)[..., 0, :]  # [R, H, A]
        spread = (share[..., None] * points).swapaxes(-1, -2) @ points
        spread -= shift[..., None] * shift[..., None, :]
        spread -= np.eye(points.shape[-1])
        # What the taste does, the state follows in regression: gain = Cov(state, taste) root^-T.
        gain = np.linalg.solve(root, self._taste_covariance().swapaxes(-1, -2)).swapaxes(-1, -2)
        self.mean = self.mean + (gain @ shift[..., None])[..., 0]
        self.covariance = self.covariance + gain @ spread @ gain.swapaxes(-1, -2)

    def own_part(self) -> tuple[Floats, Floats]:
        """Precision [R, A, A] and precision times mean [R, A] that behaviours add to the own part.

        What is known of it before any behaviour, standard normal, is not in it, so that those of
        several categories can be added.
        """
        dims = self._config.num_attributes
        mean, covariance = collapse(self.weight, self.mean, self.covariance)
        precision = np.linalg.inv(covariance[:, :dims, :dims])
        added = precision - np.eye(dims)
        # Moment matching may widen a direction that nothing was learnt of.
        values, vectors = np.linalg.eigh(0.5 * (added + added.swapaxes(-1, -2)))
        added = (vectors * np.maximum(values, 0.0)[:, None]) @ vectors.swapaxes(-1, -2)
        return added, (precision @ mean[:, :dims, None])[..., 0]

    def add_own_part(self, precision: Floats, pull: Floats) -> None:
        """Take in what was learnt of the own part elsewhere, as `own_part` gives it."""
        dims = self._config.num_attributes
        before = np.linalg.inv(self.covariance)
        pull_before = (before @ self.mean[..., None])[..., 0]
        after, pull_after = before.copy(), pull_before.copy()
        after[..., :dims, :dims] += precision[:, None]
        pull_after[..., :dims] += pull[:, None]
        covariance = np.asarray(np.linalg.inv(after), np.float64)
        mean = (covariance @ pull_after[..., None])[..., 0]
        gained = (pull_after * mean).sum(axis=-1) - (pull_before * self.mean).sum(axis=-1)
        narrowed = np.linalg.slogdet(before)[1] - np.linalg.slogdet(after)[1]
        evidence = np.where(self.weight > 0.0, 0.5 * (gained + narrowed), -np.inf)
        self.weight = self.weight * np.exp(evidence - evidence.max(axis=1, keepdims=True))
        self.weight /= self.weight.sum(axis=1, keepdims=True)
        self.mean, self.covariance = mean, covariance


def collapse(weight: Floats, mean: Floats, covariance: Floats) -> tuple[Floats, Floats]:
    """Mean [R, S] and covariance [R, S, S] of mixtures of Gaussians.

    Args:
        weight: sums to 1, [R, H].
        mean: [R, H, S].
        covariance: [R, H, S, S].
    """
    center = (weight[:, None] @ mean)[:, 0]
    apart = mean - center[:, None]
    inside = (weight[..., None, None] * covariance).sum(axis=1)
    return center, inside + (weight[..., None] * apart).swapaxes(-1, -2) @ apart
