"""Click rate by place in the list, and whether the order of a list says more than places can.

What position bias can do is give each place k of a list of n a click rate c_k. If that is all, its
places are clicked independently, and where m are, they are the first m with probability

    o_1 ... o_m / e_m(o_1, ..., o_n),    o_k = c_k / (1 - c_k),

e_m being the sum of the products of all choices of m of n. Lists that were sorted by label, as
those of JDsearch were, have the positives first always. It takes lists with several clicks to tell:
that the only click is on the first place may be position bias, however strong.
"""

# n candidates of a list, m of them clicked

from collections import Counter
from dataclasses import dataclass

import numpy as np

from cdp_torchrec.data.request_files import Impressions

MOST_PLACES = 1000
"""Further places count as the last one."""
LONGEST = 100
"""Only lists up to this length are compared with what places explain."""
_HIGHEST_RATE = 0.99


@dataclass(frozen=True)
class Comparison:
    """A share of lists as it is, and as places alone explain it."""

    found: float
    expected: float
    count: int
    """Lists that it is a share of."""


class ListOrder:
    """Sums over the requests of a split."""

    def __init__(self) -> None:
        self.shown = np.zeros(MOST_PLACES, np.int64)
        """Impressions at each place."""
        self.clicked = np.zeros(MOST_PLACES, np.int64)
        """Clicks there."""
        self._average = np.zeros(MOST_PLACES)
        """Clicks that would be there if all places of a list were alike."""
        self._impressions_of_length = np.zeros(LONGEST + 1, np.int64)
        self._clicks_of_length = np.zeros(LONGEST + 1, np.int64)
        self._lists: Counter[tuple[int, int]] = Counter()
        self._sorted: Counter[tuple[int, int]] = Counter()

    def add(self, part: Impressions) -> None:
        """Add whole requests."""
        lengths = np.bincount(part.request_index, minlength=len(part.request["request_id"]))
        place = places_in_lists(part)
        is_click = part.candidate["label"] == 1
        owner = part.request_index[is_click]
        clicks = np.bincount(owner, minlength=len(lengths))
        seen = np.minimum(place, MOST_PLACES - 1)
        self.shown += np.bincount(seen, minlength=MOST_PLACES)
        self.clicked += np.bincount(seen[is_click], minlength=MOST_PLACES)
        rate = (clicks / np.maximum(lengths, 1))[part.request_index]
        self._average += np.bincount(seen, rate, minlength=MOST_PLACES)
        kept = lengths <= LONGEST
        for total, what in (
            (self._impressions_of_length, lengths),
            (self._clicks_of_length, clicks),
        ):
            total += np.bincount(lengths[kept], what[kept], LONGEST + 1).astype(np.int64)
        both = kept & (clicks > 0) & (clicks < lengths)
        shapes = list(zip(lengths[both].tolist(), clicks[both].tolist(), strict=True))
        self._lists.update(shapes)
        sums = np.bincount(owner, place[is_click], minlength=len(lengths))
        is_sorted = (sums == clicks * (clicks - 1) // 2)[both].tolist()
        self._sorted.update(shape for shape, first in zip(shapes, is_sorted, strict=True) if first)

    @property
    def num_places(self) -> int:
        """Places that occur."""
        return int(np.flatnonzero(self.shown)[-1]) + 1 if self.shown.any() else 0

    def lift(self) -> np.ndarray:
        """Clicks at each place that occurs over those of an average place of the same lists."""
        # One click of the average keeps places with few impressions finite.
        places = slice(self.num_places)
        return (self.clicked[places] + 1.0) / (self._average[places] + 1.0)

    def _rates(self, length: int) -> np.ndarray:
        """Click rate of each place of the lists of a length, as their rate and the lift say."""
        lift = self.lift()[:length]
        rate = self._clicks_of_length[length] / self._impressions_of_length[length]
        return np.minimum(rate * lift / lift.mean(), _HIGHEST_RATE)

    def positives_first(self, *, clicks: int) -> Comparison:
        """Share of lists in which all clicked candidates stand before all others.

        Args:
            clicks: how many a list has at least. Only lists with both labels count, and of these
                those of at most LONGEST candidates.
        """
        wanted = {shape: n for shape, n in self._lists.items() if shape[1] >= clicks}
        total = sum(wanted.values())
        if not total:
            return Comparison(float("nan"), float("nan"), 0)
        lengths = {length for length, _ in wanted}
        chances = {length: chances_of_positives_first(self._rates(length)) for length in lengths}
        found = sum(self._sorted[shape] for shape in wanted)
        expected = sum(n * float(chances[length][m]) for (length, m), n in wanted.items())
        return Comparison(found / total, expected / total, total)


def places_in_lists(part: Impressions) -> np.ndarray:
    """Place of each impression of whole requests in its list, from 0, [n]."""
    lengths = np.bincount(part.request_index, minlength=len(part.request["request_id"]))
    return np.arange(len(part.request_index)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def chances_of_positives_first(rates: np.ndarray) -> np.ndarray:
    """Probability that the first m places are clicked if m are, of m = 0 ... n, [n + 1].

    Args:
        rates: click rate of each place, within (0, 1), [n].
    """
    odds = np.log(rates) - np.log1p(-rates)
    # Logarithms of e_0, e_1, ..., e_n of the places so far.
    sums = np.full(len(rates) + 1, -np.inf)
    sums[0] = 0.0
    for odd in odds:
        sums[1:] = np.logaddexp(sums[1:], sums[:-1] + odd)
    of_first = np.concatenate([[0.0], np.cumsum(odds)])
    return np.exp(of_first - sums)
