"""How much each piece of knowledge of a simulated world is worth: a ladder of oracle features.

Each rung ranks the test requests by the true logit without taste and one feature more, in the
proportion that a logistic regression finds on every other request. What lies between two rungs has
a name: the noise of histories, the weights of the context, what nobody can know.
"""

# N requests, K candidates, C categories, A latent attributes

from dataclasses import dataclass

import numpy as np

from cdp_torchrec.data.synthetic.log import SimulatedLog
from cdp_torchrec.data.synthetic.world import Floats
from cdp_torchrec.metrics import grouped_auc

MOST_RECENT = 500
"""Behaviours of a category that are pooled."""
_NEWTON_STEPS = 30


@dataclass(frozen=True)
class Rung:
    """One set of features."""

    name: str
    gauc: float
    """On the requests that the regression has not seen."""


def climb(log: SimulatedLog) -> list[Rung]:
    """GAUC of every rung, from no taste at all to the true taste under the context's weights.

    Args:
        log: the simulated log.
    """
    world, requests = log.world, log.requests
    sessions, items = requests.sessions, requests.items
    attributes = world.item_attributes[items]  # [N, K, A]
    weighted = attributes * world.taste_weights(sessions)[:, None]
    pooled, taste = _pooled_attributes(log), _true_tastes(log)
    features = {
        "all but taste": np.zeros(items.shape),
        "true attributes, pooled": (pooled * attributes).sum(axis=2),
        "the same x the context's weights": (pooled * weighted).sum(axis=2),
        "true taste": (taste * attributes).sum(axis=2),
        "true taste x the context's weights": (taste * weighted).sum(axis=2),
    }
    base = world.taste_free_logits(sessions, items)
    return [Rung(name, _gauc(log, base, feature)) for name, feature in features.items()]


def _pooled_attributes(log: SimulatedLog) -> Floats:
    """Mean true attributes of the behaviours in the category of each candidate, [N, K, A].

    Less the mean of what is shown there; 0 without a behaviour.
    """
    world, requests = log.world, log.requests
    c = world.config
    first, known = log.gated_histories(requests)
    begin = first + np.maximum(known - MOST_RECENT, 0)
    attributes = world.item_attributes[log.behaviours.item]
    sums = np.concatenate([np.zeros((1, c.num_attributes)), np.cumsum(attributes, axis=0)])
    count = np.minimum(known, MOST_RECENT)[..., None]
    mean = (sums[first + known] - sums[begin]) / np.maximum(count, 1)  # [N, C, A]
    by_category = world.item_attributes.reshape(c.num_categories, c.items_per_category, -1)
    mean -= (count > 0) * (world.item_popularity @ by_category)
    return mean[np.arange(len(mean))[:, None], world.category_of(requests.items)]


def _true_tastes(log: SimulatedLog) -> Floats:
    """Taste of the user in the category of each candidate, [N, K, A]."""
    world, requests = log.world, log.requests
    user = requests.sessions.user[:, None]
    return world.taste(log.tastes, user, world.category_of(requests.items))


def _gauc(log: SimulatedLog, base: Floats, feature: Floats) -> float:
    label = log.requests.label
    design = np.stack([np.ones_like(base), base, feature], axis=-1)
    coefficients = _logistic_regression(
        design[::2].reshape(-1, 3), label[::2].ravel().astype(np.float64)
    )
    score = design[1::2] @ coefficients
    request = np.repeat(np.arange(len(score)), score.shape[1])
    return grouped_auc(score.ravel(), label[1::2].ravel(), request).weighted_mean


def _logistic_regression(features: Floats, label: Floats) -> Floats:
    """Coefficients of the most likely logistic regression, by Newton's method."""
    coefficients = np.zeros(features.shape[1])
    ridge = 1e-6 * len(label) * np.eye(len(coefficients))
    for _ in range(_NEWTON_STEPS):
        probability = 1.0 / (1.0 + np.exp(-(features @ coefficients)))
        slope = features.T @ (label - probability) - ridge @ coefficients
        curvature = (features.T * (probability * (1.0 - probability))) @ features + ridge
        step = np.linalg.solve(curvature, slope)
        coefficients += step
        if np.abs(step).max() < 1e-10:
            break
    return coefficients
