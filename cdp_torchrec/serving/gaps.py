"""What a request leaves out and what training never saw: scored by rule, and worth counting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cdp_torchrec.data.schema import Feature
from cdp_torchrec.serving.encode import USER_FEATURE, EncodedRequest
from cdp_torchrec.serving.request import Request, RequestError
from cdp_torchrec.serving.vocabulary import MISSING


@dataclass(frozen=True)
class Gaps:
    """Of one request, by the feature's name; features without are left out."""

    missing: Mapping[str, int]
    """Values that are not there: null, or the feature was not given."""
    unknown: Mapping[str, int]
    """Ids beyond the vocabulary."""


def find_gaps(
    encoded: EncodedRequest, features: Sequence[Feature], num_ids: Mapping[str, int]
) -> Gaps:
    """Count them.

    Args:
        encoded: the request.
        features: all of the schema.
        num_ids: ids that the vocabularies know, by entity.
    """
    missing: dict[str, int] = {}
    unknown: dict[str, int] = {}
    for feature in features:
        values = _values(encoded, feature.name)
        if feature.entity is None:
            missing[feature.name] = int(np.isnan(values).sum())
            continue
        missing[feature.name] = int((values == MISSING).sum())
        unknown[feature.name] = int((values > num_ids[feature.entity]).sum())
        if feature.kind == "ids":
            missing[feature.name] += len(values) == 0
    return Gaps(
        missing={name: count for name, count in missing.items() if count},
        unknown={name: count for name, count in unknown.items() if count},
    )


def _values(encoded: EncodedRequest, name: str) -> np.ndarray:
    if name == USER_FEATURE:
        return np.array([encoded.user])
    if name in encoded.candidate:
        return encoded.candidate[name]
    if name in encoded.bags:
        return encoded.bags[name]
    return np.array([encoded.request[name]])


def refuse_gaps(
    request: Request, gaps: Gaps, features: Sequence[Feature], required: Sequence[str]
) -> None:
    """What a strict server asks beyond what can be scored.

    Args:
        request: as it was sent.
        gaps: its gaps.
        features: all of the schema; every one must be given.
        required: candidate features whose ids must be known.

    Raises:
        RequestError: a feature is not given, or a required id is unknown.
    """
    if request.user is None and request.history is None:
        raise RequestError("user", "is required, or a history: this server is strict")
    for feature in features:
        if feature.name == USER_FEATURE:
            continue
        is_of_request = feature.level == "request"
        given = request.features if is_of_request else request.candidates
        if given.get(feature.name) is None:
            group = "features" if is_of_request else "candidates"
            raise RequestError(f"{group}.{feature.name}", "is required: this server is strict")
    for name in required:
        if name in gaps.unknown:
            raise RequestError(
                f"candidates.{name}",
                f"{gaps.unknown[name]} ids are unknown to the model: this server is strict",
            )
