"""The global AUC, exactly, although no rank ever holds all impressions.

Impressions are divided into ranges of the score, and each range meets on one rank, which counts
the pairs within it. Pairs across ranges need only each range's totals: a click wins against every
non-click of a lower range. Counts are integers, so the result is exact for any division into
ranges; a sample of the scores is enough to make the ranges about equally large. A score so common
that it would fill a range is a range of its own whose rows stay where they are: all pairs in it
are ties, and totals suffice.
"""

# n impressions, M ranges, C columns: all strata side by side, then the bootstrap replicates

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdp_torchrec.metrics.bootstrap import weight_chunks
from cdp_torchrec.metrics.pairs import PairCounts, count_pairs, order_scores
from cdp_torchrec.metrics.ranks import Ranks
from cdp_torchrec.metrics.rows import Stratification, score_codes
from cdp_torchrec.metrics.spool import Spool, meet, num_rounds

_SAMPLE_SIZE = 1 << 16
_RANGES_PER_BLOCK = 4
_MAX_BLOCKS = 1 << 10


@dataclass(frozen=True)
class AucOverall:
    """AUC over all impressions, NaN where a class is missing."""

    strata: NDArray[np.float64]
    """Within each stratum, [total number of strata]; column 0 is all impressions."""
    replicates: NDArray[np.float64]
    """All impressions under each replicate's weights, [num_bootstrap]."""


def auc_over_all(
    spool: Spool,
    ranks: Ranks,
    layout: tuple[Stratification, ...],
    *,
    num_bootstrap: int,
    seed: int,
) -> AucOverall:
    """Let the impressions of every score range meet on one rank, and count pairs. Collective.

    Args:
        spool: this rank's rows, in any partitions.
        ranks: who takes part.
        layout: the stratifications of the rows.
        num_bootstrap: number of replicates.
        seed: seed of the replicates.
    """
    counter = _PairCounter(layout, num_bootstrap, seed)
    num_blocks = num_rounds(spool, ranks) * ranks.size
    if num_blocks == 1:
        counts = counter.count(spool.read(0, len(spool.counts)))[None]
    else:
        counts = _count_in_ranges(spool, ranks, num_blocks, counter)
    clicks, non_clicks, double_wins = counts.transpose(1, 0, 2)
    lower_non_clicks = np.cumsum(non_clicks, axis=0) - non_clicks
    auc = PairCounts(
        clicks=clicks.sum(axis=0),
        non_clicks=non_clicks.sum(axis=0),
        double_wins=(double_wins + 2 * clicks * lower_non_clicks).sum(axis=0),
    ).auc()
    num_strata = layout[-1].columns.stop
    return AucOverall(strata=auc[:num_strata], replicates=auc[num_strata:])


def _count_in_ranges(
    spool: Spool, ranks: Ranks, num_blocks: int, counter: "_PairCounter"
) -> NDArray[np.int64]:
    """Clicks, non-clicks and double wins of every range, [M, 3, C], on every rank."""
    edges, is_tie = _score_ranges(spool, ranks, num_blocks)
    counts = np.zeros((len(is_tie), 3, counter.num_columns), np.int64)
    by_score = spool.like(num_partitions=len(is_tie))
    for rows in spool.chunks():
        index = _range_index(edges, rows)
        tied = is_tie[index]
        by_score.append(rows[~tied], index[~tied])
        for tie in np.unique(index[tied]):
            counts[tie] += counter.count(rows[index == tie])
    # A block of ranges may be counted as one range, unless a tie lies in between.
    stretch = np.cumsum(is_tie)
    for rows in meet(by_score, ranks):
        index = _range_index(edges, rows)
        for part in np.unique(stretch[index]):
            inside = stretch[index] == part
            counts[index[inside].min()] += counter.count(rows[inside])
    counts = ranks.sum(counts)
    # In a tie every pair is half a win, also those of rows on different ranks.
    counts[is_tie, 2] = counts[is_tie, 0] * counts[is_tie, 1]
    return counts


def _range_index(edges: NDArray[np.int64], rows: NDArray) -> NDArray[np.uint16]:
    return (np.searchsorted(edges, score_codes(rows), side="right") - 1).astype(np.uint16)


def _score_ranges(
    spool: Spool, ranks: Ranks, num_blocks: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Lower edges of the ranges, [M], and which of them hold a single very common score, [M]."""
    num_blocks = min(num_blocks, _MAX_BLOCKS)
    total = int(ranks.sum(spool.counts).sum())
    stride = max(1, total // _SAMPLE_SIZE)
    sampled = [score_codes(rows[::stride]) for rows in spool.chunks()]
    sample = np.sort(ranks.route([np.concatenate(sampled)] * ranks.size)).astype(np.int64)
    scores, frequency = np.unique(sample, return_counts=True)
    common = scores[frequency * 2 * num_blocks > len(sample)]
    num_ranges = num_blocks * _RANGES_PER_BLOCK
    quantiles = sample[np.arange(1, num_ranges) * len(sample) // num_ranges]
    edges = np.unique(np.concatenate([[0], quantiles, common, common + 1]))
    return edges, np.isin(edges, common)


@dataclass(frozen=True)
class _PairCounter:
    layout: tuple[Stratification, ...]
    num_bootstrap: int
    seed: int

    @property
    def num_columns(self) -> int:
        return self.layout[-1].columns.stop + self.num_bootstrap

    def count(self, rows: NDArray) -> NDArray[np.int64]:
        """Clicks, non-clicks and double wins within these rows, [3, C]."""
        code, clicked = score_codes(rows), np.ascontiguousarray(rows["clicked"])
        result = np.zeros((3, self.num_columns), np.int64)
        for column, stratification in enumerate(self.layout):
            level = rows["strata"][:, column]
            pairs = count_pairs(code, clicked, level, len(stratification.labels))
            result[:, stratification.columns] = pairs.clicks, pairs.non_clicks, pairs.double_wins
        if self.num_bootstrap:
            self._count_replicates(rows, code, clicked, result[:, -self.num_bootstrap :])
        return result

    def _count_replicates(
        self,
        rows: NDArray,
        code: NDArray[np.uint32],
        clicked: NDArray[np.bool_],
        result: NDArray[np.int64],
    ) -> None:
        order = order_scores(code, clicked)
        user_id, user = np.unique(rows["user"], return_inverse=True)
        clicking, not_clicking = user[order.clicks], user[order.non_clicks]
        for chunk, weights in weight_chunks(
            user_id, num_bootstrap=self.num_bootstrap, seed=self.seed
        ):
            for replicate, by_user in enumerate(weights, start=chunk.start):
                weight = by_user.astype(np.int64)
                click_weights, non_click_weights = weight[clicking], weight[not_clicking]
                result[:, replicate] = (
                    click_weights.sum(),
                    non_click_weights.sum(),
                    order.double_wins(click_weights, non_click_weights),
                )
