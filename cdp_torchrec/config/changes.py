"""What differs between two configurations, and which keys may differ when a run goes on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from cdp_torchrec.config.errors import shown
from cdp_torchrec.config.keys import KeyNode, key_tree, tables_of, toml_key


@dataclass(frozen=True)
class Change:
    """A key with another value; None where it is not set."""

    key: str
    old: Any
    new: Any
    may_change: bool
    """Whether the field is marked with `MAY_CHANGE`."""

    def describe(self) -> str:
        """The new value, and the one that the run has."""
        new = "is not set" if self.new is None else f"= {shown(self.new)}"
        old = "does not set it" if self.old is None else f"has {shown(self.old)}"
        return f"{self.key} {new}: the run {old}"


def find_changes(old: BaseModel, new: BaseModel) -> list[Change]:
    """All keys of two configurations of one class whose values differ.

    A table whose `kind` differs is one change, as is a table that only one of them has.
    """
    return list(_changes(tables_of(old), tables_of(new), key_tree(type(old)), ""))


def changeable(config_class: type[BaseModel]) -> list[str]:
    """The keys that may change; a section all of whose keys may is one."""
    return list(_changeable(key_tree(config_class), ""))


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], node: KeyNode, prefix: str
) -> Iterator[Change]:
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        child, key = node.keys.get(name) or node.values or KeyNode(), prefix + toml_key(name)
        if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
            yield Change(key, before, after, child.may_change)
        elif before.get(child.tag) != after.get(child.tag):
            kinds = before.get(child.tag), after.get(child.tag)
            yield Change(f"{key}.{child.tag}", *kinds, child.may_change)
        else:
            yield from _changes(before, after, child.table(after.get(child.tag)), f"{key}.")


def _changeable(node: KeyNode, prefix: str) -> Iterator[str]:
    for name, child in node.keys.items():
        if child.may_change or (child.keys and all(k.may_change for k in child.keys.values())):
            yield prefix + name
        else:
            yield from _changeable(child, f"{prefix}{name}.")
