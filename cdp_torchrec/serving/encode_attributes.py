"""Attributes of behaviours that a request brings along: checked, and as the store has them."""

# L behaviours

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cdp_torchrec.data.history.behaviour_attributes import BehaviourAttribute
from cdp_torchrec.serving.request import AttributeValue, RequestError
from cdp_torchrec.serving.values import listed, numbers
from cdp_torchrec.serving.vocabulary import Vocabulary


def encode_attributes(
    given: object,
    attributes: Sequence[BehaviourAttribute],
    vocabularies: Mapping[str, Vocabulary],
    *,
    length: int,
    at_most: int,
) -> dict[str, np.ndarray]:
    """Columns by name, as `Behaviours.attributes` of the store.

    Args:
        given: values by name; one that is not given is missing in all behaviours.
        attributes: of the dataset.
        vocabularies: by entity.
        length: L.
        at_most: longest list.

    Raises:
        RequestError: a name is unknown, a list has another length, or a value cannot be read.
    """
    if not isinstance(given, Mapping):
        raise RequestError("history", f"expected attributes by name, found {type(given).__name__}")
    known = [attribute.name for attribute in attributes]
    for name in given:
        if name not in known:
            raise RequestError(f"history.{name}", f"no such attribute; allowed: {known}")
    columns = {}
    for attribute in attributes:
        field = f"history.{attribute.name}"
        values = listed(given.get(attribute.name, [None] * length), field, at_most=at_most)
        if len(values) != length:
            raise RequestError(field, f"{len(values)} values for {length} behaviours")
        columns[attribute.name] = _column(attribute, values, field, vocabularies)
    return columns


def _column(
    attribute: BehaviourAttribute,
    values: Sequence[object],
    field: str,
    vocabularies: Mapping[str, Vocabulary],
) -> np.ndarray:
    if attribute.entity is None:
        # The store has them so, and rounds them so.
        return numbers(values, field).astype(np.float32)
    found = np.zeros((len(values), attribute.max_ids), dtype=np.int64)
    if attribute.kind == "id" and values:
        found[:, 0] = vocabularies[attribute.entity].codes(values, field=field)
        return found
    for row, value in enumerate(values):
        ids = [] if value is None else listed(value, field, at_most=attribute.max_ids)
        codes = vocabularies[attribute.entity].codes(
            [raw for raw in ids if raw is not None], field=field
        )
        found[row, : len(codes)] = codes
    return found


def raw_attributes(
    columns: Mapping[str, np.ndarray],
    attributes: Sequence[BehaviourAttribute],
    vocabularies: Mapping[str, Vocabulary],
) -> dict[str, list[AttributeValue]]:
    """The other way round: what a client would send of some behaviours of the store.

    Args:
        columns: their values, by name.
        attributes: of the dataset.
        vocabularies: by entity.
    """
    found: dict[str, list[AttributeValue]] = {}
    for attribute in attributes:
        values = columns[attribute.name]
        if attribute.entity is None:
            numbers = values.tolist()
            found[attribute.name] = [None if math.isnan(value) else value for value in numbers]
        elif attribute.kind == "id":
            found[attribute.name] = list(vocabularies[attribute.entity].raw(values[:, 0]))
        else:
            raw = vocabularies[attribute.entity].raw
            found[attribute.name] = [raw(codes[codes > 0]) for codes in values]
    return found
