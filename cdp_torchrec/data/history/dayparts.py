"""The time of day of behaviours: equal parts of it, from midnight UTC."""

# L behaviours, Q histories, P parts of the day

import numpy as np

_DAY_MS = 86_400_000


def dayparts_of(timestamp_ms: np.ndarray, dayparts: int) -> np.ndarray:
    """Part of the day in which each behaviour happened, uint8 in [0, dayparts), same shape.

    Args:
        timestamp_ms: milliseconds since the epoch, int64.
        dayparts: P, parts of a day.
    """
    return (timestamp_ms % _DAY_MS * dayparts // _DAY_MS).astype(np.uint8)


def split_by_daypart(
    values: np.ndarray, lengths: np.ndarray, timestamp_ms: np.ndarray, dayparts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values of behaviours by the time of day: those of all histories in part 0, in part 1 ...

    Args:
        values: of the behaviours, history after history, [L].
        lengths: behaviours of each history, [Q].
        timestamp_ms: when they happened, [L].
        dayparts: P, parts of a day.

    Returns:
        The values, [L], and how many each history has in each part, int64 [P, Q].
    """
    part = dayparts_of(timestamp_ms, dayparts)
    cell = part * np.int64(len(lengths)) + np.repeat(np.arange(len(lengths)), lengths)
    counts = np.bincount(cell, minlength=dayparts * len(lengths))
    return values[np.argsort(part, kind="stable")], counts.reshape(dayparts, len(lengths))
