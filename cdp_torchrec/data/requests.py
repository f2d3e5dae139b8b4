"""One global order of the impressions of a split.

An epoch is a seeded shuffle in windows: the row groups in random order, several of them in a
window, the requests of each window in random order, flattened into impressions. A row group is a
stretch of time, and batches of one stretch are far from independent: the more of them a window
holds, the better a model learns. The order depends on the seed and the epoch only, never on the
number of ranks, so a position in it is one number.
"""

from functools import lru_cache

import numpy as np

from cdp_torchrec.data.request_files import Impressions, RequestFiles, concatenate

_WINDOWS_IN_MEMORY = 2


class _Window:
    """Impressions whose requests are shuffled together."""

    def __init__(self, whole: Impressions, rng: np.random.Generator | None) -> None:
        """Args: the impressions, and what shuffles their requests; None: nothing does."""
        self._whole = whole
        count = len(whole.request["request_id"])
        self._order = np.arange(count) if rng is None else rng.permutation(count)
        lengths = np.bincount(whole.request_index, minlength=count)
        self._first = (np.cumsum(lengths) - lengths)[self._order]
        self._lengths = lengths[self._order]
        self._ends = np.cumsum(self._lengths)

    def take(self, start: int, stop: int) -> Impressions:
        """Impressions [start, stop) of the order."""
        low = int(np.searchsorted(self._ends, start, side="right"))
        high = int(np.searchsorted(self._ends, stop, side="left")) + 1
        requests, lengths = self._order[low:high], self._lengths[low:high]
        owner = np.repeat(np.arange(len(requests)), lengths)
        place = np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]
        rows = self._first[low:high][owner] + place
        begin = int(self._ends[low] - lengths[0])
        wanted = slice(start - begin, stop - begin)
        return Impressions(
            request={name: column[requests] for name, column in self._whole.request.items()},
            bags={name: bag.take(requests) for name, bag in self._whole.bags.items()},
            candidate={n: column[rows[wanted]] for n, column in self._whole.candidate.items()},
            request_index=owner[wanted],
        )


class ImpressionOrder:
    """One epoch after the other of all impressions of a selection, addressed by position.

    Position p lies in epoch p // num_impressions.
    """

    def __init__(
        self, files: RequestFiles, *, seed: int | None, shuffled_together: int = 1
    ) -> None:
        """Make the order.

        Args:
            files: the requests.
            seed: seed of the shuffle; None keeps the order of the files, for evaluation.
            shuffled_together: a window is whole as soon as it has so many requests.
        """
        self._files = files
        self._seed = seed
        self._shuffled_together = shuffled_together
        self.num_impressions = files.num_impressions
        self._make_caches()

    def _make_caches(self) -> None:
        self._windows = lru_cache(2)(self._cut_windows)
        self._window = lru_cache(_WINDOWS_IN_MEMORY)(self._read_window)

    # An order may be copied to worker processes; each keeps caches of its own.
    def __getstate__(self) -> dict[str, object]:
        return {n: v for n, v in vars(self).items() if n not in ("_windows", "_window")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._make_caches()

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed or 0, *stream])

    def _cut_windows(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Blocks of each window of an epoch in order, and the position at which each ends."""
        blocks = np.arange(len(self._files.blocks))
        if self._seed is None:
            windows = list(blocks[:, None])
        else:
            blocks = self._rng(epoch).permutation(blocks)
            requests = np.array([self._files.blocks[b].num_requests for b in blocks])
            windows = _cut(blocks, requests, at_least=self._shuffled_together)
        sizes = [sum(self._files.blocks[b].num_impressions for b in window) for window in windows]
        return windows, np.cumsum(sizes)

    def _read_window(self, epoch: int, place: int) -> _Window:
        blocks = self._windows(epoch)[0][place]
        whole = concatenate([self._files.read(block) for block in blocks])
        return _Window(whole, None if self._seed is None else self._rng(epoch, blocks[0]))

    def take(self, epoch: int, start: int, stop: int) -> Impressions:
        """Impressions [start, stop) of an epoch; they must lie inside it."""
        windows, ends = self._windows(epoch)
        parts = []
        for place in range(int(np.searchsorted(ends, start, side="right")), len(windows)):
            begin = int(ends[place - 1]) if place else 0
            if begin >= stop:
                break
            low, high = max(start - begin, 0), min(stop, int(ends[place])) - begin
            parts.append(self._window(epoch, place).take(low, high))
        return concatenate(parts)


def _cut(blocks: np.ndarray, sizes: np.ndarray, *, at_least: int) -> list[np.ndarray]:
    """Runs of blocks; a new one begins when the last has the size."""
    starts, size = [0], 0
    for place in range(1, len(blocks)):
        size += int(sizes[place - 1])
        if size >= at_least:
            starts.append(place)
            size = 0
    return np.split(blocks, starts[1:])
