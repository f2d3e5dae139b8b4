"""Settings that nothing reads, because of what other settings say (`only_if`, `not_with`)."""

from collections.abc import Iterator, Mapping
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
        unmet = next(_unmet(child, values), None)
        if unmet:
            key, instead = unmet
            because_of = (*path, key)
            reason = f"has no effect with {'.'.join(because_of)} = {one_of([values[key]])}{instead}"
            for changed in _changed(value, default, here):
                yield IdleKey(changed, because_of, reason)
        elif isinstance(value, Mapping):
            yield from idle_keys(child.table(value.get(child.tag)), value, default or {}, here)


def _unmet(node: KeyNode, beside: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys that keep this one from being read, each with what it should be instead."""
    for key, allowed in node.only_if.items():
        value = beside[key]
        if set(allowed).isdisjoint(value if isinstance(value, list) else [value]):
            yield key, f", only with {one_of(list(allowed))}"
    for key, excluded in node.not_with.items():
        if beside[key] == excluded:
            yield key, ""


def _changed(value: Any, default: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The key, or the keys of the table, with other values than their defaults."""
    if isinstance(value, Mapping):
        usual = default if isinstance(default, Mapping) else {}
        for name, inner in value.items():
            yield from _changed(inner, usual.get(name), (*path, name))
    elif value != default:
        yield path
