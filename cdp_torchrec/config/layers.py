"""Reading configuration: TOML files and `key=value`, merged, with the source of every key."""

import copy
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdp_torchrec.config.keys import KeyNode
from cdp_torchrec.config.shipped import SHIPPED, find_beside, find_shipped, similar_layers
from cdp_torchrec.config.toml_file import MAX_DEPTH, UnreadableError, parse_toml, read_toml

COMMAND_LINE = "command line"
DEFAULT = "default"

KeyPath = tuple[str, ...]

# Behind the first name, a quoted one may have dots of its own, as in TOML.
_NAME = re.compile(r'[\w-]+|"[^"]*"', re.ASCII)
_OVERRIDE = re.compile(
    rf"\s*([A-Za-z_][\w-]*(?:\.(?:{_NAME.pattern}))*)\s*=(.*)", re.DOTALL | re.ASCII
)


_MOST_EXTENDS = 20
_MOST_SHOWN = 80


def cut(text: str) -> str:
    """A text in a message: on one line, and short where it is long."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


@dataclass
class Layers:
    """What all layers say together, and which of them said it."""

    tree: KeyNode
    """The keys that may be set; tells which tables are alternatives of each other."""
    data: dict[str, Any] = field(default_factory=dict)
    sources: dict[KeyPath, str] = field(default_factory=dict)
    """File or command line that set a key last; tables included."""
    asked: list[str] = field(default_factory=list)
    """The sources from the lowest to the highest, without the defaults and the configuration of a
    run that lies below."""

    def add(self, layer: Mapping[str, Any], source: str) -> None:
        """Put a layer on top: tables merge, everything else replaces.

        Where one of several tables is chosen by its `kind`, another kind replaces the old table.
        """
        self._merge(self.data, layer, source, (), self.tree)

    def ask(self, layer: Mapping[str, Any], source: str) -> None:
        """Put a layer on top that somebody names now."""
        self.add(layer, source)
        self.asked.append(source)

    def put(self, layers: "Layers") -> None:
        """Put layers that are merged already on top, with their sources.

        A key that gets the value that it has keeps its source.
        """
        same = {p: s for p, s in self.sources.items() if _at(self.data, p) == _at(layers.data, p)}
        self.add(layers.data, "")
        self.sources |= layers.sources | same
        self.asked += layers.asked

    def unset(self, path: Sequence[str]) -> None:
        """Forget a key of the layers so far, if one of them set it."""
        table: Any = self.data
        for name in path[:-1]:
            table = table.get(name, {})
        table.pop(path[-1], None)
        self._forget(tuple(path))

    def rank(self, path: KeyPath) -> int:
        """Place of a key's source among those that are asked for; -1 if it is none of them."""
        source = self.sources.get(path)
        return self.asked.index(source) if source in self.asked else -1

    def source(self, path: Sequence[str | int]) -> str | None:
        """Where a key, or the list that an element stands in, was set; None if nowhere."""
        keys = itertools.takewhile(lambda part: isinstance(part, str), path)
        return self.sources.get(tuple(map(str, keys)))

    def _merge(
        self,
        table: dict[str, Any],
        layer: Mapping[str, Any],
        source: str,
        above: KeyPath,
        node: KeyNode,
    ) -> None:
        for name, value in layer.items():
            path = (*above, name)
            is_there, old = name in table, table.get(name)
            if isinstance(value, Mapping):
                child = node.keys.get(name) or node.values or KeyNode()
                if not isinstance(old, dict) or _changes_kind(old, value, child.tag):
                    if is_there:
                        self._forget(path)
                    table[name] = {}
                kind = value.get(child.tag, table[name].get(child.tag))
                self._merge(table[name], value, source, path, child.table(kind))
            else:
                if is_there:
                    self._forget(path)
                table[name] = copy.deepcopy(value)
            self.sources[path] = source

    def _forget(self, path: KeyPath) -> None:
        for key in [key for key in self.sources if key[: len(path)] == path]:
            del self.sources[key]


def _at(table: Any, path: KeyPath) -> Any:
    """What stands at a place in nested tables; None where nothing does."""
    for name in path:
        table = table.get(name) if isinstance(table, Mapping) else None
    return table


def is_layer(argument: str) -> bool:
    """Whether an argument names a layer."""
    return argument.endswith(".toml") and not is_override(argument)


def is_override(argument: str) -> bool:
    """Whether an argument sets a key."""
    return _OVERRIDE.fullmatch(argument) is not None


def read_layers(
    arguments: Sequence[str],
    tree: KeyNode,
    *,
    defaults: Mapping[str, Any],
    base: Path | None = None,
    default_layers: Sequence[Path] = (),
    unset: Sequence[str] = (),
) -> tuple[Layers, list[str]]:
    """Merge all layers and overrides.

    Args:
        arguments: paths ending in `.toml`, and `section.key=value`, in any order. A layer that is
            not there may be one that comes with the package, from any working directory.
        tree: the keys that may be set.
        defaults: lowest layer.
        base: whole configuration that lies below what the arguments say, however often that
            changes a `kind` on its way.
        default_layers: files to read when the arguments name none.
        unset: dotted keys of the base to forget.

    Returns:
        The merged layers, and everything that could not be read, one line each.
    """
    asked = Layers(tree)
    if base is None:
        asked.add(defaults, DEFAULT)
    files: list[Path] = []
    overrides: dict[KeyPath, Any] = {}
    problems: list[str] = []
    for argument in arguments:
        if match := _OVERRIDE.fullmatch(argument):
            key, text = match[1], match[2].strip()
            path = tuple(name.strip('"') for name in _NAME.findall(key))
            if clashes := list(_clashes(path, overrides)):
                problems += clashes
                continue
            if len(path) > MAX_DEPTH:
                problems.append(f"{cut(key)}: more than {MAX_DEPTH} tables inside each other")
                continue
            try:
                overrides[path] = _parse_value(text)
            except ValueError as error:
                problems.append(f"{cut(key)} = {cut(text)}: {error} [{COMMAND_LINE}]")
        elif not is_layer(argument):
            problems.append(
                f"'{cut(argument)}' is neither a layer (a path ending in .toml) nor an override "
                "(section.key=value, without leading dashes)"
            )
        elif (file := find_shipped(Path(argument))) in files:
            problems.append(f"{argument}: the layer is named twice")
        else:
            files.append(file)
    seen: set[Path] = set()
    for file in files or default_layers:
        for label, layer in _read_file(file, (), seen, problems):
            asked.ask(layer, label)
    # All at once, so that a changed `kind` undoes no other override.
    asked.ask(_nested(overrides), COMMAND_LINE)
    if base is None:
        return asked, problems
    layers = Layers(tree)
    layers.add(defaults, DEFAULT)
    for label, layer in _read_file(base, (), set(), problems):
        layers.add(layer, label)
    for key in unset:
        layers.unset(key.split("."))
    layers.put(asked)
    return layers, problems


def _changes_kind(old: Mapping[str, Any], new: Mapping[str, Any], tag: str) -> bool:
    return bool(tag) and tag in old and tag in new and old[tag] != new[tag]


def _nested(overrides: Mapping[KeyPath, Any]) -> dict[str, Any]:
    """The tables that dotted keys describe."""
    root: dict[str, Any] = {}
    for path, value in overrides.items():
        table = root
        for name in path[:-1]:
            table = table.setdefault(name, {})
        table[path[-1]] = value
    return root


def _clashes(path: KeyPath, overrides: Iterable[KeyPath]) -> Iterator[str]:
    """Overrides of the key, of a table around it, or of a key in it: as in TOML, one is enough."""
    for other in overrides:
        depth = min(len(path), len(other))
        if path[:depth] == other[:depth]:
            also = "" if other == path else f", by '{'.'.join(other)}=' too"
            yield f"{'.'.join(path)}: set twice on the {COMMAND_LINE}{also}"


def _parse_value(text: str) -> Any:
    """A TOML value, or a bare word, which is a string.

    Raises:
        ValueError: no value, or broken TOML.
    """
    if not text:
        raise ValueError('no value; an empty string is ""')
    if not text.isascii() and text.encode(errors="replace") != text.encode(errors="surrogatepass"):
        raise ValueError("not UTF-8")
    try:
        # Inside a table on one line, no second line, key or comment can hide in the value.
        parsed = parse_toml(f"table = {{value = {text}}}")["table"]
    except UnreadableError as error:
        if text[0] in "[{\"'":
            raise ValueError(f"not valid TOML: {str(error).partition(' (at ')[0]}") from error
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _read_file(
    path: Path, below: tuple[Path, ...], seen: set[Path], problems: list[str]
) -> list[tuple[str, dict[str, Any]]]:
    """A layer with the layers that it extends, lowest first, each with its label.

    A file that several layers extend counts once, where it comes first; otherwise it would undo
    what the layers in between say.
    """
    try:
        file = path.resolve()
        label = _label(file)
    except (OSError, RuntimeError, ValueError) as error:  # a name or a link that no file can have
        problems.append(f"{cut(str(path))}: cannot be read: {_reason(error)}{_named_by(below)}")
        return []
    if file in below:
        chain = " -> ".join(map(_label, (*below[below.index(file) :], file)))
        problems.append(f"{label}: extends itself ({chain})")
        return []
    if len(below) >= _MOST_EXTENDS:
        problems.append(f"{label}: extended through more than {_MOST_EXTENDS} layers")
        return []
    if below and file in seen:
        return []
    seen.add(file)
    try:
        layer = read_toml(file)
    except FileNotFoundError:
        problems.append(f"{label}: no such file{similar_layers(Path(label))}{_named_by(below)}")
        return []
    except UnreadableError as error:
        problems.append(f"{label}: {error}{_named_by(below)}")
        return []
    extends = layer.pop("extends", [])
    names = [extends] if isinstance(extends, str) else extends
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        problems.append(f"{label}: extends = {extends!r}: must be a path or a list of paths")
        return []
    lower = [
        found
        for name in names
        for found in _read_file(find_beside(file.parent, name), (*below, file), seen, problems)
    ]
    return [*lower, (label, layer)]


def _label(file: Path) -> str:
    here, shipped = Path.cwd().resolve(), SHIPPED.resolve()
    if file.is_relative_to(shipped) and not file.is_relative_to(here):
        return f"configs/{file.relative_to(shipped)}"
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _named_by(below: tuple[Path, ...]) -> str:
    return f" [extended by {_label(below[-1])}]" if below else ""
