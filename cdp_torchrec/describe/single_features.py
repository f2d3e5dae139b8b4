"""How well a single feature ranks the candidates of test requests.

A number ranks by its size, whichever way is better; an id by the click rate that its value has in
training. What ranks much better than all else either is what the model is for, or was written after
the click.
"""

import numpy as np

from cdp_torchrec.data.request_files import Impressions
from cdp_torchrec.data.schema import Schema
from cdp_torchrec.describe.list_order import places_in_lists
from cdp_torchrec.describe.ranked import RankedBy

_PRIOR_IMPRESSIONS = 10.0
"""Impressions at the overall click rate that each rate starts with."""

PLACE = "place in the list"
"""What ranks by the order in which the log has the candidates."""


class SingleFeatures:
    """Learns click rates from the training split, and measures on the test split."""

    def __init__(self, schema: Schema) -> None:
        candidate = [f for f in schema.features if f.level == "candidate"]
        sizes = {f.name: schema.entities[f.entity].num_ids + 1 for f in candidate if f.entity}
        self._numbers = {f.name: f.mean for f in candidate if f.kind == "number"}
        self._clicks = {name: np.zeros(size) for name, size in sizes.items()}
        self._shown = {name: np.zeros(size) for name, size in sizes.items()}
        self._overall = schema.splits["train"].click_rate
        requested = [f for f in schema.features if f.level == "request" and f.kind == "id"]
        self._pairs = [
            (first.name, second.name)
            for first in requested
            for second in candidate
            if first.entity == second.entity
        ]
        self._found: dict[str, RankedBy] = {}
        self._never_missing = {_if_missing(name) for name in self._numbers}

    def learn(self, part: Impressions) -> None:
        """Count the clicks of each id in some training impressions."""
        clicked = part.candidate["label"] == 1
        for name, total in self._clicks.items():
            codes = part.candidate[name]
            np.add.at(total, codes[clicked], 1.0)
            np.add.at(self._shown[name], codes, 1.0)

    def measure(self, part: Impressions) -> None:
        """Rank whole requests of the test split."""
        index, clicked = part.request_index, part.candidate["label"] == 1
        for name, clicks in self._clicks.items():
            prior = _PRIOR_IMPRESSIONS * self._overall
            codes = part.candidate[name]
            rate = (clicks[codes] + prior) / (self._shown[name][codes] + _PRIOR_IMPRESSIONS)
            self._add(by_click_rate(name), rate, clicked, index)
        for name, mean in self._numbers.items():
            number = part.candidate[name].astype(np.float64)
            missing = np.isnan(number)
            self._add(f"{name}, by size", np.where(missing, mean, number), clicked, index)
            # Also where nothing is missing: it ranks all requests, or it is not comparable.
            self._add(_if_missing(name), missing.astype(float), clicked, index)
            if missing.any():
                self._never_missing.discard(_if_missing(name))
        self._add(PLACE, places_in_lists(part), clicked, index)
        for first, second in self._pairs:
            same = part.request[first][index] == part.candidate[second]
            self._add(f"{second} is {first}", same.astype(float), clicked, index)

    def _add(self, name: str, score: np.ndarray, clicked: np.ndarray, index: np.ndarray) -> None:
        self._found.setdefault(name, RankedBy()).add(score, clicked, index)

    def gauc(self) -> dict[str, float]:
        """GAUC on the test split by what ranks, from .5 on: the better of both directions."""
        found = {n: r.gauc for n, r in self._found.items() if n not in self._never_missing}
        best = {name: max(value, 1 - value) for name, value in found.items()}
        return dict(sorted(best.items(), key=lambda item: -item[1]))


def _if_missing(feature: str) -> str:
    return f"{feature}, if missing"


def by_click_rate(feature: str) -> str:
    """What ranks by the click rate of an id."""
    return f"{feature}, by click rate"
