"""What is not defined, such as the AUC of clicks alone: NaN inside, "-" in tables, null in JSON."""

import math
from collections.abc import Mapping
from typing import Any


def shown(value: float, *, digits: int = 4) -> str:
    """A number as tables show it."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def json_ready(value: Any) -> Any:
    """A value, or mappings and sequences of them, as JSON says it: finite, or null."""
    if isinstance(value, Mapping):
        return {key: json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
