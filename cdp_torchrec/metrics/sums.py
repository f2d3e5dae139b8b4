"""UAUC, GAUC, log loss, calibration: ratios of sums over users.

Every metric but the global AUC is a ratio of sums to which each user adds a term of its own. So
users may be added up in partitions, on any rank, and a bootstrap replicate is a weighted sum.
Within a partition, rows are put into one canonical order and partitions are added in their order:
the result does not depend, to the last bit, on how impressions were spread over ranks or batches.
"""

# n impressions, U users and Q requests of a partition, L strata of a stratification,
# K bootstrap replicates, F fields of ImpressionSums

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdp_torchrec.metrics.bootstrap import weight_chunks
from cdp_torchrec.metrics.pairs import PairCounts, count_pairs
from cdp_torchrec.metrics.ranks import Ranks
from cdp_torchrec.metrics.rows import NUM_PARTITIONS, Stratification, score_codes, user_partition
from cdp_torchrec.metrics.spool import Spool, meet

# A float32 cannot come closer to 1 than this without being 1, so a larger loss means rounding.
_SMALLEST_PROBABILITY = 2.0**-25

Values = NDArray[Any]


class ImpressionSums(NamedTuple):
    """Sums over users, all of one shape. "Kept" groups are those that have both labels."""

    impressions: Values
    clicks: Values
    probability: Values
    loss: Values
    """Cross entropy in nats."""
    users: Values
    users_kept: Values
    user_impressions_kept: Values
    user_auc: Values
    """AUC of the kept users."""
    user_auc_impressions: Values
    """AUC of the kept users times their impressions."""
    requests: Values
    requests_kept: Values
    request_impressions_kept: Values
    request_auc: Values
    request_auc_impressions: Values

    @property
    def uauc(self) -> Values:
        """Unweighted mean AUC over the kept users."""
        return _ratio(self.user_auc, self.users_kept)

    @property
    def wuauc(self) -> Values:
        """Impression-weighted mean AUC over the kept users."""
        return _ratio(self.user_auc_impressions, self.user_impressions_kept)

    @property
    def gauc(self) -> Values:
        """Impression-weighted mean AUC over the kept requests."""
        return _ratio(self.request_auc_impressions, self.request_impressions_kept)

    @property
    def gauc_unweighted(self) -> Values:
        """Unweighted mean AUC over the kept requests."""
        return _ratio(self.request_auc, self.requests_kept)

    @property
    def log_loss(self) -> Values:
        """Mean cross entropy per impression, nats."""
        return _ratio(self.loss, self.impressions)

    @property
    def ctr(self) -> Values:
        """Clicks per impression."""
        return _ratio(self.clicks, self.impressions)

    @property
    def calibration(self) -> Values:
        """Predicted clicks per click; 1 is calibrated."""
        return _ratio(self.probability, self.clicks)

    @property
    def user_coverage(self) -> Values:
        """Share of the users kept."""
        return _ratio(self.users_kept, self.users)

    @property
    def user_impression_coverage(self) -> Values:
        """Share of the impressions that the kept users have."""
        return _ratio(self.user_impressions_kept, self.impressions)

    @property
    def request_coverage(self) -> Values:
        """Share of the requests kept."""
        return _ratio(self.requests_kept, self.requests)

    @property
    def request_impression_coverage(self) -> Values:
        """Share of the impressions that the kept requests have."""
        return _ratio(self.request_impressions_kept, self.impressions)

    @property
    def ne(self) -> Values:
        """Normalized entropy: log loss over the entropy of the CTR; below 1 beats a constant."""
        ctr = np.where((self.clicks > 0) & (self.clicks < self.impressions), self.ctr, np.nan)
        return self.log_loss / -(ctr * np.log(ctr) + (1 - ctr) * np.log1p(-ctr))


_GAUC_FIELDS = [
    ImpressionSums._fields.index(name)
    for name in ("request_auc_impressions", "request_impressions_kept")
]
"""Numerator and denominator of GAUC."""


@dataclass(frozen=True)
class SumsOverUsers:
    """What all ranks know after the users' impressions have met."""

    strata: ImpressionSums
    """[total number of strata]; column 0 is all impressions."""
    replicates: ImpressionSums
    """All impressions under each replicate's weights, [K]."""
    strata_gauc_replicates: Values
    """GAUC within each stratum under each replicate's weights, [total number of strata, K]."""


def sum_over_users(
    spool: Spool,
    ranks: Ranks,
    layout: tuple[Stratification, ...],
    *,
    num_bootstrap: int,
    seed: int,
) -> SumsOverUsers:
    """Let every user's impressions meet on one rank, and add up. Collective.

    Args:
        spool: this rank's rows, partitioned by user.
        ranks: who takes part.
        layout: the stratifications of the rows.
        num_bootstrap: K.
        seed: seed of the replicates.

    Raises:
        ValueError: on all ranks, if a request met that has several users.
    """
    num_fields = len(ImpressionSums._fields)
    strata = np.zeros((NUM_PARTITIONS, num_fields, layout[-1].columns.stop))
    replicates = np.zeros((NUM_PARTITIONS, num_fields, num_bootstrap))
    strata_auc = np.zeros((NUM_PARTITIONS, 2, layout[-1].columns.stop, num_bootstrap))
    num_conflicts, conflict = 0, np.iinfo(np.int64).min
    for rows in meet(spool, ranks):
        requests = []
        for index, part in _split_by_partition(rows):
            impressions = _Impressions.of(part)
            requests.append(impressions.request_id)
            by_user = np.concatenate(
                [
                    impressions.sums_by_user(column, len(stratification.labels))
                    for column, stratification in enumerate(layout)
                ],
                axis=2,
            )
            strata[index] = by_user.sum(axis=1)
            of_auc = by_user[_GAUC_FIELDS].transpose(0, 2, 1)
            for chunk, weights in weight_chunks(
                impressions.user_id, num_bootstrap=num_bootstrap, seed=seed
            ):
                draws = weights.T.astype(float)
                replicates[index, :, chunk] = by_user[:, :, 0] @ draws
                strata_auc[index, ..., chunk] = of_auc @ draws
        ids, counts = np.unique(np.concatenate(requests), return_counts=True)
        shared = ids[counts > 1]
        num_conflicts += len(shared)
        conflict = max(conflict, int(shared.max(initial=conflict)))

    num_conflicts = int(ranks.sum(np.array([num_conflicts]))[0])
    conflict = ranks.max(conflict)
    if num_conflicts:
        raise ValueError(
            f"request_id: {num_conflicts} requests have impressions of more than one user,"
            f" for example request {conflict}; a request belongs to exactly one user"
        )
    return SumsOverUsers(
        strata=ImpressionSums(*ranks.sum(strata).sum(axis=0)),
        replicates=ImpressionSums(*ranks.sum(replicates).sum(axis=0)),
        strata_gauc_replicates=_ratio(*ranks.sum(strata_auc).sum(axis=0)),
    )


@dataclass(frozen=True)
class _Impressions:
    """The impressions of one partition in canonical order: by user, request, score and label."""

    user_id: NDArray[np.uint64]
    """Mixed id of each user, [U]."""
    request_id: NDArray[np.int64]
    """[Q]"""
    user_of_request: NDArray[np.int64]
    """Index of each request's user, [Q]."""
    user: NDArray[np.int64]
    """Index of each impression's user, [n]."""
    request: NDArray[np.int64]
    """[n]"""
    code: NDArray[np.uint32]
    clicked: NDArray[np.bool_]
    loss: Values
    probability: Values
    strata: NDArray[np.int8]
    """[n, S]"""

    @classmethod
    def of(cls, rows: NDArray) -> "_Impressions":
        key = (score_codes(rows) << np.uint32(1)) | rows["clicked"]
        rows = rows[np.lexsort((key, rows["request"], rows["user"]))]
        user_id, request_id = rows["user"], rows["request"]
        new_user = np.append(True, user_id[1:] != user_id[:-1])
        new_request = new_user | np.append(True, request_id[1:] != request_id[:-1])
        user = np.cumsum(new_user) - 1
        clicked = np.ascontiguousarray(rows["clicked"])
        probability = rows["probability"].astype(np.float64)
        right = np.where(clicked, probability, 1.0 - probability)
        return cls(
            user_id=user_id[new_user],
            request_id=request_id[new_request],
            user_of_request=user[new_request],
            user=user,
            request=np.cumsum(new_request) - 1,
            code=score_codes(rows),
            clicked=clicked,
            loss=-np.log(np.maximum(right, _SMALLEST_PROBABILITY)),
            probability=probability,
            strata=rows["strata"],
        )

    def sums_by_user(self, column: int, num_strata: int) -> Values:
        """What each user adds to ImpressionSums in each stratum, [F, U, L]."""
        level = self.strata[:, column].astype(np.int64)
        num_users, num_requests = len(self.user_id), len(self.request_id)
        cell = self.user * num_strata + level
        users = count_pairs(self.code, self.clicked, cell, num_users * num_strata)
        requests = count_pairs(
            self.code,
            self.clicked,
            self.request * num_strata + level,
            num_requests * num_strata,
        )
        owner = (self.user_of_request[:, None] * num_strata + np.arange(num_strata)).ravel()

        def add(values: NDArray, index: NDArray[np.int64]) -> Values:
            return np.bincount(index, weights=values, minlength=num_users * num_strata)

        sums = ImpressionSums(
            users.clicks + users.non_clicks,
            users.clicks,
            add(self.probability, cell),
            add(self.loss, cell),
            *_group_terms(users),
            *(add(values, owner) for values in _group_terms(requests)),
        )
        return np.stack(sums).reshape(len(sums), num_users, num_strata)


def _group_terms(counts: PairCounts) -> tuple[Values, ...]:
    """Per group: is there, is kept, impressions if kept, AUC if kept, and their product."""
    impressions = counts.clicks + counts.non_clicks
    kept = (counts.clicks > 0) & (counts.non_clicks > 0)
    auc = np.where(kept, counts.auc(), 0.0)
    return impressions > 0, kept, impressions * kept, auc, auc * impressions


def _split_by_partition(rows: NDArray) -> list[tuple[int, NDArray]]:
    partition = user_partition(rows["user"])
    order = np.argsort(partition, kind="stable")
    present, starts = np.unique(partition[order], return_index=True)
    parts = np.split(order, starts[1:])
    return [(int(index), rows[part]) for index, part in zip(present, parts, strict=True)]


def _ratio(numerator: Values, denominator: Values) -> Values:
    """Quotient, NaN where nothing was counted."""
    return numerator / np.where(denominator > 0, denominator, np.nan)
