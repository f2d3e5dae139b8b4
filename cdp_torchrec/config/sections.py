"""The help of a command: all of its settings, or the sections that are named behind --help.

    cdp_torchrec train --help model.interest.cdp optimizer.sparse.lr

Layers and key=value on the line decide the values that are shown, and which of several tables is
in force: `train configs/interest/din.toml --help model.interest` explains DIN.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from cdp_torchrec.config.help import describe_tables
from cdp_torchrec.config.keys import KeyNode, default_tables, key_tree, one_of
from cdp_torchrec.config.layers import is_layer, is_override, read_layers
from cdp_torchrec.config.load import ConfigError

_FLAGS = {"-h", "--help"}
_MOST_NAMES = 3


def asks_help(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for help instead of work."""
    return bool(_FLAGS & set(arguments))


def help_text(
    usage: str,
    config_class: type[BaseModel],
    arguments: Sequence[str],
    *,
    sections: Sequence[str] | None = None,
) -> str:
    """What --help prints.

    Args:
        usage: what the command does and takes.
        config_class: its configuration.
        arguments: the command line. Words behind --help that are neither layers nor key=value name
            sections or keys, which are then explained alone.
        sections: sections explained where none is named; all if not given.

    Raises:
        ConfigError: a name is no section and no key, or a layer cannot be read.
    """
    tree = key_tree(config_class)
    settings = [word for word in arguments if is_layer(word) or is_override(word)]
    layers, unreadable = read_layers(settings, tree, defaults=default_tables(config_class))
    if unreadable:
        raise ConfigError.of(unreadable)
    if named := _named(arguments):
        return "\n".join(_section(name, tree, layers.data) for name in named)
    shown = (
        [describe_tables(tree, layers.data)]
        if sections is None
        else [_section(name, tree, layers.data) for name in sections]
    )
    names = list(dict.fromkeys(_names(tree, "")))
    inner = [name for name in names if "." in name] or names
    example = max(inner, key=lambda name: sum(n.startswith(f"{name}.") for n in names))
    hint = f"--help SECTION explains one section or key, such as --help {example}.\n"
    return "\n".join([usage.strip() + "\n", hint, *shown])


def _named(arguments: Sequence[str]) -> list[str]:
    behind = arguments[min(arguments.index(flag) for flag in _FLAGS & set(arguments)) :]
    return [
        word for word in behind if not (is_layer(word) or is_override(word) or word.startswith("-"))
    ]


def _section(name: str, tree: KeyNode, values: Mapping[str, Any]) -> str:
    """Help on a dotted section or key; a kind of a table counts as a part of the name."""
    node, parent, prefix, key = tree, values, "", ""
    for part in name.split("."):
        if part in node.kinds:
            values = values if values.get(node.tag) == part else {}
            node = replace(node, kinds={part: node.kinds[part]})
            continue
        prefix, table = f"{prefix}{key}." if key else "", _table(node, values)
        child = table.keys.get(part) or table.values
        if child is None:
            raise ConfigError(_unknown(name, tree))
        node, key = child, part
        inner = values.get(part, {} if child.is_table else None)
        parent, values = values, inner if isinstance(inner, Mapping) else {}
    shown = values if node.is_table else parent.get(key)
    text = describe_tables(
        KeyNode(keys={key: _shortened(node, values)}),
        {} if shown is None else {key: shown},
        prefix,
    )
    others = [kind for kind in node.kinds if kind != values.get(node.tag)]
    if len(node.kinds) > 1:
        listed = f"{node.tag} = {one_of(others)}"
        text += f"\n--help {prefix}{key}.{others[0]} explains one of {listed}.\n"
    return text


def _table(node: KeyNode, values: Mapping[str, Any]) -> KeyNode:
    """The table in force: the only one, or the one that the values choose."""
    if len(node.kinds) == 1:
        return next(iter(node.kinds.values()))
    return node.table(values.get(node.tag))


def _shortened(node: KeyNode, values: Mapping[str, Any]) -> KeyNode:
    """Of several tables the one in force; without one, what each of them is."""
    if len(node.kinds) < 2:
        return node
    kind = values.get(node.tag)
    if kind in node.kinds:
        return replace(node, kinds={kind: node.kinds[kind]})
    return replace(node, kinds={k: replace(t, keys={}) for k, t in node.kinds.items()})


def _unknown(name: str, tree: KeyNode) -> str:
    names = list(dict.fromkeys(_names(tree, "")))
    last = name.rpartition(".")[2]
    near = [other for other in names if f".{other}".endswith(f".{last}")]
    near = near or difflib.get_close_matches(name, names, n=_MOST_NAMES)
    if not near:
        ends: dict[str, list[str]] = {}
        for other in names:
            ends.setdefault(other.rpartition(".")[2], []).append(other)
        near = [n for end in difflib.get_close_matches(last, ends) for n in ends[end]]
    hint = (
        f"did you mean {one_of(near[:_MOST_NAMES])}?"
        if near
        else f"sections: {', '.join(n for n, child in tree.keys.items() if child.is_table)}"
    )
    return f"--help {name}: no section and no key ({hint})"


def _names(node: KeyNode, prefix: str) -> Iterator[str]:
    for key, child in node.keys.items():
        yield f"{prefix}{key}"
        if child.kinds:
            for kind, table in child.kinds.items():
                yield f"{prefix}{key}.{kind}"
                yield from _names(table, f"{prefix}{key}.{kind}.")
        yield from _names(child, f"{prefix}{key}.")
