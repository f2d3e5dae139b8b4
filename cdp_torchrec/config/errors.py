"""Mistakes in a configuration, said in the user's terms: key, value found, values allowed."""

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cdp_torchrec.config.idle import idle_keys
from cdp_torchrec.config.keys import (
    KeyNode,
    default_tables,
    dotted,
    one_of,
    tables_of,
    toml_key,
    toml_value,
)
from cdp_torchrec.config.layers import DEFAULT, Layers, cut
from cdp_torchrec.config.several import ONE, SEVERAL

_MOST_PROBLEMS = 50
_MAX_INTEGER = 2**63

Location = tuple[str | int, ...]
ConfigT = TypeVar("ConfigT", bound=BaseModel)


class ConfigConflicts(ValueError):
    """Settings that do not fit together; raised by the model validator of a section.

    Args:
        conflicts: (key, text) pairs. Keys are dotted, relative to the section; the text says what
            is allowed and names other keys dotted from the root.
    """

    def __init__(self, conflicts: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{key}: {text}" for key, text in conflicts))
        self.conflicts = tuple(conflicts)


@dataclass(frozen=True)
class Problem:
    """One mistake, not yet put into words completely."""

    path: Location
    text: str
    is_conflict: bool = False
    """Found by comparing keys that are right by themselves."""
    shows_value: bool = True
    in_doubt: tuple[Location, ...] = ()
    """Keys whose values cannot be relied on because of it."""


def check(config_class: type[ConfigT], layers: Layers) -> tuple[ConfigT | None, list[str]]:
    """The configuration that the layers describe, or everything wrong with them, a line each."""
    tree = layers.tree
    data, foreign = _json_data(layers.data, ())
    config, found = _validate(config_class, data, tree)
    if config is not None and not foreign:
        idle = [_line(problem, layers) for problem in _without_effect(config, layers)]
        return (None, idle) if idle else (config, [])
    problems: list[Problem] = []
    for problem in [*foreign, *found]:
        # A list is too short to pydantic when the element that it lacks is a wrong one.
        is_said = any(known.path[: len(problem.path)] == problem.path for known in problems)
        if problem.is_conflict or not is_said:
            problems.append(problem)
    problems += _hidden_conflicts(config_class, data, tree, problems)
    lines = [_line(problem, layers) for problem in problems[:_MOST_PROBLEMS]]
    return None, lines + ["..."] * (len(problems) >= _MOST_PROBLEMS)


def _without_effect(config: BaseModel, layers: Layers) -> Iterator[Problem]:
    """Keys that nothing reads, and that no later layer has made idle: nobody can mean them.

    Unless it is a whole section that a layer has, as in a configuration that was saved.
    """
    tables = tables_of(config)
    for key in idle_keys(layers.tree, tables, default_tables(type(config))):
        is_later = layers.rank(key.path) >= max(0, layers.rank(key.because_of))
        if is_later and not _sets_all(layers, layers.source(key.path), tables, key.because_of[:-1]):
            yield Problem(key.path, key.reason, is_conflict=True)


def _sets_all(
    layers: Layers, source: str | None, tables: Mapping[str, Any], section: tuple[str, ...]
) -> bool:
    for name in section:
        tables = tables[name]
    return all(layers.source((*section, name)) == source for name in tables)


def _hidden_conflicts(
    config_class: type[BaseModel], data: Mapping[str, Any], tree: KeyNode, known: list[Problem]
) -> list[Problem]:
    """Conflicts between keys that are right, among others that are wrong.

    pydantic compares sections only when each is right by itself, so this looks once more without
    the wrong keys. A conflict that names a key in doubt is left for the user's next attempt.
    """
    in_doubt = [path for problem in known for path in problem.in_doubt]
    for path in in_doubt:
        data = _without(data, path)
    return [
        problem
        for problem in _validate(config_class, data, tree)[1]
        if problem.is_conflict
        and problem not in known
        and not any(_names(problem, path) for path in in_doubt)
    ]


def _names(problem: Problem, path: Location) -> bool:
    """Whether a problem is about a key: by its whole name, or by that within its section."""
    depth = len(problem.path)
    inside = _dotted(path[depth:]) if path[:depth] == problem.path else ""
    return _dotted(path) in f"{_dotted(problem.path)} {problem.text}" or (
        bool(inside) and inside in problem.text.split()
    )


def _validate(
    config_class: type[ConfigT], data: Mapping[str, Any], tree: KeyNode
) -> tuple[ConfigT | None, list[Problem]]:
    try:
        # As JSON, arrays fill tuples and strings fill paths, while strict types stay strict.
        return config_class.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        details = error.errors(include_url=False)[:_MOST_PROBLEMS]
        return None, [problem for detail in details for problem in _problems(detail, tree)]


def _json_data(value: Any, path: Location) -> tuple[Any, list[Problem]]:
    """The value with what JSON lacks, or no path and no number can be, replaced and reported."""
    if isinstance(value, Mapping | list):
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        pairs = {name: _json_data(inner, (*path, name)) for name, inner in entries}
        problems = [problem for _, found in pairs.values() for problem in found]
        data = {name: inner for name, (inner, _) in pairs.items()}
        return (data if isinstance(value, Mapping) else list(data.values())), problems
    if isinstance(value, date | datetime | time):
        text = "dates and times are not used here; in quotes it is a string"
        return value.isoformat(), [Problem(path, text, in_doubt=(path,))]
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0, [Problem(path, "must be a finite number", in_doubt=(path,))]
    if isinstance(value, int) and abs(value) >= _MAX_INTEGER:
        return 0, [Problem(path, "must be an integer of 64 bits", in_doubt=(path,))]
    if isinstance(value, str) and "\0" in value:
        return "", [Problem(path, "must not have a NUL character", in_doubt=(path,))]
    return value, []


def _without(data: Mapping[str, Any], path: Location) -> dict[str, Any]:
    """The data without one key; a list goes as a whole."""
    name, *below = path
    inner = data.get(str(name))
    if below and isinstance(inner, Mapping):
        return {**data, str(name): _without(inner, tuple(below))}
    return {key: value for key, value in data.items() if key != name}


# --- from pydantic's errors to problems ----------------------------------------------------------


def _problems(detail: ErrorDetails, tree: KeyNode) -> list[Problem]:
    path, node, table = _locate(detail["loc"], tree)
    kind, context = detail["type"], detail.get("ctx", {})
    here = (path,)
    if kind == "value_error":
        error = context["error"]
        if isinstance(error, ConfigConflicts):
            return [Problem((*path, *key.split(".")), text, True) for key, text in error.conflicts]
        if not path or node.is_table:
            return [Problem(path, str(error), is_conflict=True, shows_value=False)]
        return [Problem(path, str(error), in_doubt=here)]
    if kind == "extra_forbidden":
        hint, meant = _meant(path, table, tree)
        text = f"unknown key{hint}"
        return [Problem(path, text, shows_value=False, in_doubt=(*here, *meant))]
    if kind == "union_tag_invalid":
        allowed = one_of(list(node.kinds)) + _did_you_mean(context["tag"], node.kinds)
        return [Problem((*path, node.tag), f"must be {allowed}", in_doubt=here)]
    if not path:
        return [Problem(path, detail["msg"])]
    if kind in ("missing", "union_tag_not_found") and not isinstance(path[-1], int):
        return [
            Problem(key, f"required key is missing ({allowed})", shows_value=False, in_doubt=here)
            for key, allowed in _required(path, node)
        ]
    if isinstance(path[-1], int) and kind == "missing":
        path, node = path[:-1], table
    if kind.endswith(("_type", "_parsing")) or kind in _COVERED_BY_ALLOWED:
        text = f"must be {node.allowed}"
        if isinstance(detail["input"], str) and kind == "literal_error":
            text += _did_you_mean(detail["input"], node.choices)
        elif node.allowed in ("a string", "a path") and not isinstance(
            detail["input"], dict | list
        ):
            text += " in quotes"
        elif isinstance(detail["input"], dict) and node is table.values:
            # TOML reads the dots of a name as tables within tables.
            for name in list(dotted({str(path[-1]): detail["input"]}))[:1]:
                text += f'; a key with dots stands in quotes: "{name}"'
        return [Problem(path, text, in_doubt=here)]
    return [Problem(path, detail["msg"].replace("Input should be", "must be"), in_doubt=here)]


_COVERED_BY_ALLOWED = (
    "literal_error",
    "missing",
    "int_from_float",
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "too_short",
    "too_long",
    "string_too_short",
    "string_too_long",
    "string_pattern_mismatch",
    "multiple_of",
)


def _locate(loc: Location, tree: KeyNode) -> tuple[Location, KeyNode, KeyNode]:
    """Key path of pydantic's location, the key's node, and the table or list that holds it."""
    path: Location = ()
    node = holder = tree
    for part in loc:
        if part in (ONE, SEVERAL):
            continue
        if isinstance(part, str) and part in node.kinds:
            # The tag of a union is part of the location but no key.
            node = node.kinds[part]
            continue
        if isinstance(part, int) and node.items:
            child = node.items[min(part, len(node.items) - 1)]
        elif node.is_table:
            child = node.keys.get(str(part), KeyNode())
        elif node.values is not None:
            child = node.values
        else:
            # The rest names members of an untagged union; `allowed` covers them all.
            break
        path, node, holder = (*path, part), child, node
    return path, node, holder


def _meant(path: Location, table: KeyNode, tree: KeyNode) -> tuple[str, list[Location]]:
    """What an unknown key may have been meant to be: a hint, and the keys meant."""
    name = str(path[-1])
    _, union, _ = _locate(path[:-1], tree)  # of whose kinds the table is one
    names = [*filter(None, [union.tag]), *table.keys]
    if close := difflib.get_close_matches(name, names, n=1):
        return f" (did you mean '{close[0]}'?)", [(*path[:-1], close[0])]
    if kinds := [kind for kind, other in union.kinds.items() if name in other.keys]:
        return f" (it is a key of {union.tag} = {one_of(kinds)})", []
    if elsewhere := [key for key in dict.fromkeys(_keys_below(tree, ())) if key[-1] == name]:
        return f" (did you mean {one_of([_dotted(key) for key in elsewhere])}?)", elsewhere
    return f" (keys here: {', '.join(names)})" if table.keys else "", []


def _keys_below(node: KeyNode, path: Location) -> Iterator[Location]:
    for name, child in node.keys.items():
        yield (*path, name)
        for table in child.tables().values():
            yield from _keys_below(table, (*path, name))


def _required(path: Location, node: KeyNode) -> Iterator[tuple[Location, str]]:
    """What must be written where a key is missing: the required keys of a section, or itself."""
    if node.kinds:
        yield (*path, node.tag), one_of(list(node.kinds))
        return
    inner = [(name, child) for name, child in node.keys.items() if child.required]
    for name, child in inner:
        yield from _required((*path, name), child)
    if not inner:
        yield path, node.allowed


def _did_you_mean(found: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(found, list(allowed), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


# --- from problems to text -----------------------------------------------------------------------


def _dotted(path: Location) -> str:
    return ".".join(str(part) if isinstance(part, int) else toml_key(part) for part in path)


def _line(problem: Problem, layers: Layers) -> str:
    if not problem.path:
        return problem.text
    value, source = _found(problem.path, layers)
    setting = f" = {shown(value)}" if problem.shows_value and value is not None else ""
    return f"{_dotted(problem.path)}{setting}: {problem.text}" + (f" [{source}]" if source else "")


def _found(path: Location, layers: Layers) -> tuple[Any, str | None]:
    """Value of a key and where it was set."""
    value: Any = layers.data
    for part in path:
        known = part in value if isinstance(value, Mapping) else isinstance(part, int)
        if not known:
            default = _node_at(path, layers.data, layers.tree).default
            return default, None if default is None else DEFAULT
        value = value[part]
    return value, layers.source(path)


def _node_at(path: Location, data: Any, tree: KeyNode) -> KeyNode:
    node = tree
    for part in path:
        data = data.get(part, {}) if isinstance(data, Mapping) else {}
        child = node.keys.get(str(part), KeyNode())
        node = child.table(data.get(child.tag) if isinstance(data, Mapping) else None)
    return node


def shown(value: Any) -> str:
    """A value of a key in a message, cut where it is long."""
    return cut(repr(value) if isinstance(value, str) else toml_value(value))
