"""Lists that hold each value once, because each of them is work of its own."""

from typing import TypeVar

from pydantic import AfterValidator

ValueT = TypeVar("ValueT")


def _once(values: tuple[ValueT, ...]) -> tuple[ValueT, ...]:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)}: named twice")
    return values


ONCE = AfterValidator(_once)
"""Marks such a list."""
