"""How well one column alone tells clicks from other impressions."""

# n impressions, C values

from collections.abc import Mapping

import numpy as np

from cdp_torchrec.data.summary import Figure

_BINS = 256
_PRIOR_IMPRESSIONS = 1.0


class LeakMeter:
    """AUC of a rule that is learnt from every other request and measured on the rest.

    The rule is the click rate of a value, so that any kind of dependence shows, and an id that
    occurs once, in one half, tells nothing. Values of numbers are gathered in bins.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[np.ndarray]] = {}
        self._labels: list[np.ndarray] = []
        self._measured: list[np.ndarray] = []

    def add(
        self, columns: Mapping[str, np.ndarray], label: np.ndarray, request: np.ndarray
    ) -> None:
        """Add impressions.

        Args:
            columns: codes (int) or numbers (float, NaN where missing) by name, [n] each.
            label: 0 or 1, [n].
            request: number of the request of each, [n].
        """
        for name, column in columns.items():
            self._columns.setdefault(name, []).append(column)
        self._labels.append(label.astype(bool))
        self._measured.append(request % 2 == 1)

    def figures(self) -> dict[str, Figure]:
        """AUC by column; none without both labels in both halves."""
        if not self._labels:
            return {}
        clicked, measured = np.concatenate(self._labels), np.concatenate(self._measured)
        if not all(0 < clicked[half].sum() < half.sum() for half in (measured, ~measured)):
            return {}
        return {
            name: Figure(_leak(np.concatenate(c), clicked, measured), int(measured.sum()))
            for name, c in self._columns.items()
        }


def _leak(column: np.ndarray, clicked: np.ndarray, measured: np.ndarray) -> float:
    """The better one of two rules: the click rate of a value or bin, and the size of a number."""
    values, codes = np.unique(column, return_inverse=True)
    best = 0.0
    if column.dtype.kind == "f":
        # A missing number, NaN, comes last.
        by_size = _auc(np.arange(len(values)), codes[measured], clicked[measured])
        best = max(by_size, 1.0 - by_size)
        codes = codes * min(_BINS, len(values)) // len(values)
        codes[np.isnan(column)] = _BINS
    size = int(codes.max()) + 1
    rate = clicked[~measured].mean()
    learnt = np.bincount(codes[~measured], minlength=size)
    clicks = np.bincount(codes[~measured & clicked], minlength=size)
    score = (clicks + _PRIOR_IMPRESSIONS * rate) / (learnt + _PRIOR_IMPRESSIONS)
    return max(best, _auc(score, codes[measured], clicked[measured]))


def _auc(score: np.ndarray, codes: np.ndarray, clicked: np.ndarray) -> float:
    """AUC of impressions whose score is that of their code, [C]."""
    # Codes of one score are tied, and a tie is half a win.
    _, group = np.unique(score, return_inverse=True)
    won = np.bincount(group, weights=np.bincount(codes[clicked], minlength=len(score)))
    lost = np.bincount(group, weights=np.bincount(codes[~clicked], minlength=len(score)))
    below = np.cumsum(lost) - lost
    return float((won * (below + 0.5 * lost)).sum() / (won.sum() * lost.sum()))
