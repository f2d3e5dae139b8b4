"""The keys that a configuration class accepts, as a tree read from the class itself.

Help, error messages and editor schema all follow this tree, so none of them can disagree with what
is accepted.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tomli_w
from pydantic import BaseModel, Field
from pydantic.config import JsonDict

_MARK = "may_change"
_CONDITIONS = "only_if"
_EXCLUSIONS = "not_with"

MAY_CHANGE = Field(json_schema_extra={_MARK: True})
"""Marks a key, or all keys of a section: a run may go on with another value, because it decides
neither what is trained nor how it is measured. Every other key is a part of what the run is."""


def only_if(**conditions: str | tuple[str, ...]) -> Any:
    """Marks a key, or all keys of a section: nothing reads it unless other keys allow it.

    Args:
        conditions: keys beside it, each with the value, or the values, one of which it must have,
            or hold, where it is a list.
    """
    allowed: JsonDict = {
        key: list(values) if isinstance(values, tuple) else [values]
        for key, values in conditions.items()
    }
    return Field(json_schema_extra={_CONDITIONS: allowed})


def not_with(**exclusions: float | tuple[()]) -> Any:
    """Marks a key, or all keys of a section: nothing reads it beside these values of other keys.

    Args:
        exclusions: keys beside it, each with the value that it must not have.
    """
    excluded: JsonDict = {
        key: [] if isinstance(value, tuple) else value for key, value in exclusions.items()
    }
    return Field(json_schema_extra={_EXCLUSIONS: excluded})


@dataclass(frozen=True)
class KeyNode:
    """One key: a value, a list, a table, or one of several tables chosen by a tag.

    What has keys and items is a table or a list of such tables.
    """

    doc: str = ""
    """Docstring of the field; of its class, where a section says no more than its class."""
    summary: str = ""
    """Docstring of the table's class."""
    allowed: str = ""
    """Type and range in words, as in "must be an integer > 0"."""
    choices: tuple[str, ...] = ()
    """The strings that are allowed, where they are a fixed few."""
    required: bool = False
    default: Any = None
    keys: Mapping[str, "KeyNode"] = field(default_factory=dict)
    """Keys of a table."""
    tag: str = ""
    """Key that chooses among `kinds`."""
    kinds: Mapping[str, "KeyNode"] = field(default_factory=dict)
    """The tables to choose from, by the value of the tag."""
    items: tuple["KeyNode", ...] = ()
    """Elements of a list: one for all of them, or one each."""
    values: "KeyNode | None" = None
    """Each entry of a table whose keys are free."""
    may_change: bool = False
    """Whether a run may go on with another value (`MAY_CHANGE`)."""
    only_if: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Values that keys beside it must have for it to be read (`only_if`)."""
    not_with: Mapping[str, Any] = field(default_factory=dict)
    """Values of keys beside it with which it is not read (`not_with`)."""

    @property
    def is_table(self) -> bool:
        """Whether the key opens a table whose keys are fixed."""
        return bool(self.keys or self.kinds)

    def tables(self) -> dict[str, "KeyNode"]:
        """The tables that may stand here, by tag; the only one under ""."""
        return dict(self.kinds) or {"": self}

    def table(self, tag: Any) -> "KeyNode":
        """The table in force when the tag has this value."""
        return self.kinds.get(tag, self) if isinstance(tag, str) else self

    def inner_tables(self) -> Iterator[tuple[str, "KeyNode"]]:
        """Tables right below a table, also those in its lists and its tables of free keys."""
        for name, child in self.keys.items():
            if child.is_table:
                yield name, child
            elif child.values and child.values.is_table:
                yield f"{name}.<name>", child.values
            elif child.items and child.items[0].is_table:
                yield f"{name}[]", child.items[0]


@functools.cache
def key_tree(config_class: type[BaseModel]) -> KeyNode:
    """All keys that a configuration class accepts."""
    schema = config_class.model_json_schema()
    return _node(schema, schema.get("$defs", {}))


def tables_of(config: BaseModel) -> dict[str, Any]:
    """All values as a layer has them; keys without a value are left out."""
    return config.model_dump(mode="json", exclude_none=True)


@functools.cache
def default_tables(config_class: type[BaseModel]) -> Mapping[str, Any]:
    """Defaults of all sections, as the lowest layer; the same object each time, not to be changed.

    A layer that sets one key of a section thereby keeps the section's other defaults, which may
    differ from those of its class (`sparse: OptimizerConfig = OptimizerConfig(lr=5e-4)`).
    """
    tables: dict[str, Any] = {}
    for name, info in config_class.model_fields.items():
        default = info.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            tables[name] = tables_of(default)
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            nested = default_tables(info.annotation)
            tables.update({name: nested} if nested else {})
    return tables


def dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by their dotted keys."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        inner = isinstance(value, Mapping)
        found |= dotted(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def toml_key(name: str) -> str:
    """A key as TOML wants it: quoted only where it must be."""
    if name.isascii() and name.replace("_", "").replace("-", "").isalnum():
        return name
    return tomli_w.dumps({name: 0}).removesuffix(" = 0\n")


def toml_value(value: Any) -> str:
    """A value on one line of TOML."""
    if isinstance(value, Mapping):
        entries = [(toml_key(k), toml_value(v)) for k, v in value.items() if v is not None]
        return "{" + ", ".join(f"{key} = {inner}" for key, inner in entries) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, int) and abs(value) >= 2**64:
        return hex(value)  # Python writes no decimal of thousands of digits
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def _node(
    raw: Mapping[str, Any],
    definitions: Mapping[str, Any],
    *,
    required: bool = False,
    tag: str = "",
    may_change: bool = False,
) -> KeyNode:
    shape = _resolved(raw, definitions)
    if one := _one_of_several(shape):
        return replace(
            _node({**raw, **one}, definitions, required=required, may_change=may_change),
            allowed=_allowed(shape, definitions),
            items=(_node(one, definitions),),
        )
    choice = shape.get("discriminator", {})
    elements = shape.get("prefixItems") or ([shape["items"]] if "items" in shape else [])
    free = shape.get("additionalProperties")
    may_change = may_change or raw.get(_MARK, False)
    return KeyNode(
        doc=_one_line(raw.get("description") or shape.get("description", "")),
        summary=_one_line(shape.get("description", "")),
        allowed=_allowed(shape, definitions),
        choices=tuple(c for c in shape.get("enum", ()) if isinstance(c, str)),
        required=required,
        default=raw.get("default"),
        keys={
            name: _node(
                child,
                definitions,
                required=name in shape.get("required", ()),
                may_change=may_change,
            )
            for name, child in shape.get("properties", {}).items()
            if name != tag
        },
        tag=choice.get("propertyName", ""),
        kinds={
            kind: _node(
                {"$ref": target}, definitions, tag=choice["propertyName"], may_change=may_change
            )
            for kind, target in choice.get("mapping", {}).items()
        },
        items=tuple(_node(element, definitions) for element in elements),
        values=(
            _node(free, definitions, may_change=may_change) if isinstance(free, Mapping) else None
        ),
        may_change=may_change,
        only_if=raw.get(_CONDITIONS, {}),
        not_with=raw.get(_EXCLUSIONS, {}),
    )


def _one_of_several(shape: Mapping[str, Any]) -> Mapping[str, Any]:
    """Schema of the table where one or a list of them may stand (`OneOrSeveral`); else nothing."""
    return {} if "discriminator" in shape else next(iter(shape.get("oneOf", ())), {})


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _resolved(raw: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema behind a reference; null, which TOML cannot write, is left out."""
    if "$ref" in raw:
        return _resolved(definitions[raw["$ref"].removeprefix("#/$defs/")], definitions)
    choices = [choice for choice in raw.get("anyOf", ()) if choice.get("type") != "null"]
    if len(choices) == 1:
        return _resolved(choices[0], definitions)
    return {**raw, "anyOf": choices} if choices else raw


# --- type and range in words -------------------------------------------------------------------

_NOUNS = {
    "integer": ("an integer", "integers"),
    "number": ("a number", "numbers"),
    "string": ("a string", "strings"),
    "path": ("a path", "paths"),
    "boolean": ("true or false", "true/false values"),
    "array": ("a list", "lists"),
    "object": ("a table", "tables"),
}
_LIMITS = {
    "exclusiveMinimum": "> ",
    "minimum": ">= ",
    "exclusiveMaximum": "< ",
    "maximum": "<= ",
    "multipleOf": "a multiple of ",
    "pattern": "matching ",
}
_SIZES = {
    "at least": ("minItems", "minLength", "minProperties"),
    "at most": ("maxItems", "maxLength", "maxProperties"),
}


def _allowed(raw: Mapping[str, Any], definitions: Mapping[str, Any], plural: bool = False) -> str:
    raw = _resolved(raw, definitions)
    if alternatives := raw.get("anyOf") or (_one_of_several(raw) and raw["oneOf"]):
        return " or ".join(_allowed(choice, definitions, plural) for choice in alternatives)
    if choices := raw.get("enum") or ([raw["const"]] if "const" in raw else []):
        return ("values out of " if plural else "") + one_of(choices)
    kind = raw.get("type", "object" if "discriminator" in raw else "")
    kind = "path" if raw.get("format") == "path" else kind
    text = _NOUNS.get(kind, ("a value", "values"))[plural]
    inner = raw.get("items") or raw.get("additionalProperties")
    if "prefixItems" in raw:
        elements = ", ".join(_allowed(item, definitions) for item in raw["prefixItems"])
        return f"{text} of {len(raw['prefixItems'])}: {elements}"
    if isinstance(inner, Mapping):
        text += " of " + _allowed(inner, definitions, plural=True)
    limits = " and ".join(
        f"{sign}{_short(raw[key])}" for key, sign in _LIMITS.items() if key in raw
    )
    return f"{text} {limits}".strip() + _size(raw)


def _short(limit: Any) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _size(raw: Mapping[str, Any]) -> str:
    unit = "character" if raw.get("type") == "string" else "element"
    sizes = [(word, raw[key]) for word, keys in _SIZES.items() for key in keys if raw.get(key)]
    shown = [f"{word} {size} {unit}{'s' * (size != 1)}" for word, size in sizes]
    return f" ({', '.join(shown)})" if shown else ""


def one_of(choices: list[Any]) -> str:
    """Alternatives in words: 'a', 'b' or 'c'."""
    shown = [repr(choice) if isinstance(choice, str) else toml_value(choice) for choice in choices]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
