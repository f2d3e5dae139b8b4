"""Values of a request as a client sent them: lists and numbers."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from cdp_torchrec.data.schema import LARGEST_NUMBER
from cdp_torchrec.serving.request import RequestError


def listed(values: object, field: str, *, at_most: int) -> Sequence[object]:
    """A list of limited length.

    Raises:
        RequestError: it is none, or is longer.
    """
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise RequestError(field, f"expected a list, found {type(values).__name__}")
    if len(values) > at_most:
        raise RequestError(field, f"{len(values)} values, at most {at_most} are allowed")
    return values


def numbers(values: Iterable[object], field: str) -> np.ndarray:
    """Numbers, float64; NaN, which is read as the mean, for None.

    Raises:
        RequestError: one is none, or no finite one of moderate size.
    """
    values = list(values)
    if set(map(type, values)) == {float}:
        found = np.array(values, dtype=np.float64)
        if (np.abs(found) <= LARGEST_NUMBER).all():
            return found
    return np.array([_number(value, field) for value in values], dtype=np.float64)


def _number(value: object, field: str) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise RequestError(field, f"expected a number, found {type(value).__name__}")
    # The bound also keeps integers out that no float can hold.
    if not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise RequestError(field, "expected a finite number of moderate size")
    return float(value)
