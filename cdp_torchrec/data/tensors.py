"""The same for every tensor inside of something."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any


def map_tensors(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to the tensors and keyed jagged tensors in dataclasses and tuples."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(map_tensors(element, function) for element in value)
    if is_dataclass(value) and not isinstance(value, type):
        mapped = {f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)}
        return replace(value, **mapped)
    return function(value)
