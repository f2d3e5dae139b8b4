"""Attributes of behaviours as a batch carries them: codes by key, and a matrix of numbers."""

# L behaviours, A columns of attributes

from collections.abc import Mapping, Sequence

import numpy as np

from cdp_torchrec.data.column import Column
from cdp_torchrec.data.history.behaviour_attributes import BehaviourAttribute
from cdp_torchrec.data.history.dayparts import dayparts_of


def attribute_codes(
    attributes: Sequence[BehaviourAttribute], columns: Mapping[str, Column], rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Codes of some behaviours by column: one for each id that a behaviour may have, [L] each.

    Args:
        attributes: of the behaviours.
        columns: their values in the store, by name.
        rows: of the behaviours, [L].
    """
    codes = {}
    for attribute in attributes:
        if attribute.kind != "number":
            values = np.asarray(columns[attribute.name][rows])
            codes |= dict(zip(attribute.columns, values.T, strict=True))
    return codes


def attribute_matrix(
    attributes: Sequence[BehaviourAttribute],
    columns: Mapping[str, Column],
    rows: np.ndarray,
    *,
    timestamp: Column,
    dayparts: int,
) -> np.ndarray | None:
    """What a model reads of some behaviours beside codes, [L, A].

    Standardised numbers, then 1 for each id of an attribute of several and 0 for none, then 1 for
    the part of the day and 0 for the others.

    Args:
        attributes: of the behaviours.
        columns: their values in the store, by name.
        rows: of the behaviours, [L].
        timestamp: of the behaviours in the store, milliseconds since the epoch.
        dayparts: parts of a day; 1: the time of day is left out.

    Returns:
        None where there is nothing of it.
    """
    numbers = [
        a.standardise(np.asarray(columns[a.name][rows], dtype=np.float64))[:, None]
        for a in attributes
        if a.kind == "number"
    ]
    filled = [np.asarray(columns[a.name][rows]) > 0 for a in attributes if a.kind == "ids"]
    parts = [*numbers, *filled]
    if dayparts > 1:
        part = dayparts_of(np.asarray(timestamp[rows]), dayparts)
        parts.append(part[:, None] == np.arange(dayparts))
    return np.concatenate(parts, axis=1).astype(np.float32) if parts else None
