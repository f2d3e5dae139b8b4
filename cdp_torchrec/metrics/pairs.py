"""AUC as a count of pairs, with ties counted one half, for one group or for millions at once.

AUC = (pairs in which the click scores higher + half of the tied pairs) / (clicks * non-clicks).
With the non-clicks sorted, the wins of a click are two binary searches: how many non-clicks lie
below its score, and how many lie at or below it; their sum is twice the wins.
"""

# n impressions, P clicks, N non-clicks, G groups

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class GroupedAuc:
    """One AUC per group; groups with a single class have none (NaN)."""

    group: NDArray
    """Sorted distinct group ids, [G]."""
    num_impressions: NDArray[np.int64]
    """[G]"""
    num_clicks: NDArray[np.int64]
    """[G]"""
    auc: NDArray[np.float64]
    """[G], NaN for a group without both labels."""

    @property
    def mean(self) -> float:
        """Unweighted mean over the groups that have both labels (UAUC of users)."""
        kept = ~np.isnan(self.auc)
        return float(self.auc[kept].mean()) if kept.any() else float("nan")

    @property
    def weighted_mean(self) -> float:
        """Impression-weighted mean over the groups that have both labels (GAUC of requests)."""
        kept = ~np.isnan(self.auc)
        if not kept.any():
            return float("nan")
        return float(np.average(self.auc[kept], weights=self.num_impressions[kept]))


@dataclass(frozen=True)
class PairCounts:
    """Exact integer pair counts per group; counts of disjoint score ranges can be combined."""

    clicks: NDArray[np.int64]
    """[G]"""
    non_clicks: NDArray[np.int64]
    """[G]"""
    double_wins: NDArray[np.int64]
    """Twice the number of pairs won by the click, a tie being half a win, [G]."""

    def auc(self) -> NDArray[np.float64]:
        """AUC per group, NaN where a class is missing, [G]."""
        pairs = self.clicks.astype(np.float64) * self.non_clicks
        defined = np.where(pairs > 0, pairs, np.nan)
        return self.double_wins / (2.0 * defined)


@dataclass(frozen=True)
class ScoreOrder:
    """Impressions ordered by score once, so that the AUC under other weights needs no new sort."""

    clicks: NDArray[np.int64]
    """Positions of the clicks, [P]."""
    non_clicks: NDArray[np.int64]
    """Positions of the non-clicks by increasing score, [N]."""
    below: NDArray[np.int64]
    """Number of non-clicks that score less than each click, [P]."""
    through: NDArray[np.int64]
    """Number of non-clicks that score less than or as much as each click, [P]."""

    def double_wins(self, click_weights: NDArray, non_click_weights: NDArray) -> np.number:
        """Twice the weight of the pairs won; exact for integer weights.

        Args:
            click_weights: weights in the order of `clicks`, [P].
            non_click_weights: weights in the order of `non_clicks`, [N].
        """
        cumulative = np.empty(len(non_click_weights) + 1, non_click_weights.dtype)
        cumulative[0] = 0
        np.cumsum(non_click_weights, out=cumulative[1:])
        return np.dot(click_weights, cumulative[self.below] + cumulative[self.through])


def auc(probability: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve of all impressions, ties counted one half.

    Args:
        probability: scores of any scale, [n]; CPU tensors are fine.
        labels: 0 or 1, [n].
        weights: non-negative impression weights, [n]; None means 1 each.

    Returns:
        The AUC; NaN if one of the classes has no weight.

    Raises:
        ValueError: unequal lengths, NaN scores, labels outside {0, 1} or negative weights.
    """
    score, clicked = _scores_and_labels(probability, labels)
    weight = np.ones(len(score)) if weights is None else np.asarray(weights, np.float64)
    if weight.shape != score.shape or not (weight >= 0).all():
        raise ValueError(
            f"weights: expected {len(score)} non-negative numbers, found shape {weight.shape}"
            f" with minimum {weight.min(initial=np.inf)}"
        )
    order = order_scores(score_code(score), clicked)
    click_weights, non_click_weights = weight[order.clicks], weight[order.non_clicks]
    pairs = click_weights.sum() * non_click_weights.sum()
    if not pairs > 0:
        return float("nan")
    return float(order.double_wins(click_weights, non_click_weights) / (2.0 * pairs))


def grouped_auc(probability: ArrayLike, labels: ArrayLike, group: ArrayLike) -> GroupedAuc:
    """AUC within every group (user, request ...), without a loop over groups.

    Args:
        probability: scores of any scale, [n].
        labels: 0 or 1, [n].
        group: group id of each impression, [n].

    Raises:
        ValueError: unequal lengths, NaN scores or labels outside {0, 1}.
    """
    score, clicked = _scores_and_labels(probability, labels)
    ids = np.asarray(group)
    if ids.shape != score.shape:
        raise ValueError(f"group: expected {len(score)} ids, found shape {ids.shape}")
    distinct, index = np.unique(ids, return_inverse=True)
    counts = count_pairs(score_code(score), clicked, index, len(distinct))
    return GroupedAuc(
        group=distinct,
        num_impressions=counts.clicks + counts.non_clicks,
        num_clicks=counts.clicks,
        auc=counts.auc(),
    )


def score_code(score: NDArray) -> NDArray[np.uint32]:
    """Integers that order and tie exactly as the scores do, uint32 [n].

    A float32 is mapped bit by bit (so codes of separate arrays agree); for other types the code
    is the rank among the distinct values given.
    """
    if score.dtype != np.float32:
        return np.unique(score, return_inverse=True)[1].astype(np.uint32)
    # Adding zero turns -0.0, which equals 0.0 but has other bits, into 0.0.
    bits = (score + np.float32(0)).view(np.uint32)
    negative = bits >> np.uint32(31) == 1
    return np.where(negative, ~bits, bits | np.uint32(1 << 31))


def count_pairs(
    code: NDArray[np.uint32],
    clicked: NDArray[np.bool_],
    group: NDArray,
    num_groups: int,
) -> PairCounts:
    """Pairs won within every group.

    Args:
        code: order of the scores (see `score_code`), [n].
        clicked: labels, [n].
        group: group index in [0, num_groups), [n].
        num_groups: G, less than 2 ** 32.
    """
    key = (group.astype(np.uint64) << np.uint64(32)) | code
    clicks, non_clicks = np.sort(key[clicked]), np.sort(key[~clicked])
    wins = np.searchsorted(non_clicks, clicks, side="left")
    wins += np.searchsorted(non_clicks, clicks, side="right")
    num_clicks = _group_sizes(clicks, num_groups)
    num_non_clicks = _group_sizes(non_clicks, num_groups)

    cumulative = np.zeros(len(clicks) + 1, np.int64)
    np.cumsum(wins, out=cumulative[1:])
    last = np.cumsum(num_clicks)
    wins_in_sorted_order = cumulative[last] - cumulative[last - num_clicks]
    # The searches ran over all groups: the non-clicks of earlier groups are no wins.
    earlier_non_clicks = np.cumsum(num_non_clicks) - num_non_clicks
    return PairCounts(
        clicks=num_clicks,
        non_clicks=num_non_clicks,
        double_wins=wins_in_sorted_order - 2 * num_clicks * earlier_non_clicks,
    )


def order_scores(code: NDArray[np.uint32], clicked: NDArray[np.bool_]) -> ScoreOrder:
    """Order of one group of impressions, ready for any weights."""
    clicks, non_clicks = np.flatnonzero(clicked), np.flatnonzero(~clicked)
    clicks = clicks[np.argsort(code[clicks])]
    non_clicks = non_clicks[np.argsort(code[non_clicks])]
    return ScoreOrder(
        clicks=clicks,
        non_clicks=non_clicks,
        below=np.searchsorted(code[non_clicks], code[clicks], side="left"),
        through=np.searchsorted(code[non_clicks], code[clicks], side="right"),
    )


def _group_sizes(key: NDArray[np.uint64], num_groups: int) -> NDArray[np.int64]:
    return np.bincount((key >> np.uint64(32)).astype(np.int64), minlength=num_groups)


def _scores_and_labels(
    probability: ArrayLike, labels: ArrayLike
) -> tuple[NDArray, NDArray[np.bool_]]:
    score, label = np.asarray(probability), np.asarray(labels)
    if score.ndim != 1 or score.shape != label.shape:
        raise ValueError(
            f"probability and labels must be two vectors of one length,"
            f" found shapes {score.shape} and {label.shape}"
        )
    if num_bad := int(np.isnan(score).sum()):
        raise ValueError(f"probability: {num_bad} of {len(score)} values are NaN")
    if num_bad := int(((label != 0) & (label != 1)).sum()):
        raise ValueError(f"labels: {num_bad} of {len(label)} values are neither 0 nor 1")
    return score, label.astype(bool)
