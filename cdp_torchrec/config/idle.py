"""Settings that nothing reads, because of what other settings say (`only_if`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdp_torchrec.config.keys import KeyNode, one_of

KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class IdleKey:
    """A key that has another value than its default, and no effect."""

    path: KeyPath
    because_of: KeyPath
    """The key that keeps it from being read."""
    reason: str


def idle_keys(
    node: KeyNode, values: Mapping[str, Any], usual: Mapping[str, Any], path: KeyPath = ()
) -> Iterator[IdleKey]:
    """All such keys of a table.

    Args:
        node: the table's keys.
        values: what is set; keys without a value are left out.
        usual: defaults, in place of those of the keys themselves.
        path: of the table.
    """
    for name, value in values.items():
        child = node.keys.get(name) or node.values or KeyNode()
        default, here = usual.get(name, child.default), (*path, name)
        unmet = [key for key in child.only_if if not _met(values[key], child.only_if[key])]
        if unmet:
            because_of = (*path, unmet[0])
            reason = (
                f"has no effect with {'.'.join(because_of)} = {one_of([values[unmet[0]]])}, only "
                f"with {one_of(list(child.only_if[unmet[0]]))}"
            )
            for key in _changed(value, default, here):
                yield IdleKey(key, because_of, reason)
        elif isinstance(value, Mapping):
            yield from idle_keys(child.table(value.get(child.tag)), value, default or {}, here)


def _met(value: Any, allowed: Sequence[str]) -> bool:
    return not set(allowed).isdisjoint(value if isinstance(value, list) else [value])


def _changed(value: Any, default: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The key, or the keys of the table, with other values than their defaults."""
    if isinstance(value, Mapping):
        usual = default if isinstance(default, Mapping) else {}
        for name, inner in value.items():
            yield from _changed(inner, usual.get(name), (*path, name))
    elif value != default:
        yield path
