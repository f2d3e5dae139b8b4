"""A configuration explained: help text, commented TOML, and a schema for editors."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from cdp_torchrec.config.keys import (
    KeyNode,
    default_tables,
    key_tree,
    one_of,
    tables_of,
    toml_key,
    toml_value,
)

_WIDTH = 98


def describe(config_class: type[BaseModel], config: BaseModel | None = None) -> str:
    """Help on every key: value, type, range and docstring, section by section.

    Args:
        config_class: the configuration to explain.
        config: shows its values instead of the defaults.
    """
    values = tables_of(config) if config else default_tables(config_class)
    return describe_tables(key_tree(config_class), values)


def describe_tables(tree: KeyNode, values: Mapping[str, Any], prefix: str = "") -> str:
    """Help on the keys of a tree.

    Args:
        tree: the keys.
        values: what is set, by key.
        prefix: of all keys, with a dot at its end.
    """
    return "\n".join(_describe(tree, values, prefix)).strip("\n") + "\n"


def commented_toml(config: BaseModel) -> str:
    """The configuration as a layer in which a comment explains each key."""
    return "\n".join(_commented(key_tree(type(config)), tables_of(config), "")).strip("\n") + "\n"


def layer_schema(config_class: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of a layer, for completion in editors.

    As the class, but no key is required, since the layers below may have it; a table without its
    `kind` may therefore be any of the tables to choose from.
    """
    schema = _partial(config_class.model_json_schema())
    schema["properties"]["extends"] = {
        "description": "Layers below this one; paths relative to this file.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    return schema


def _partial(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_partial(inner) for inner in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        "anyOf" if key == "oneOf" else key: _partial(value)
        for key, value in schema.items()
        if not (key == "required" and isinstance(value, list))
    }


def _wrapped(text: str, prefix: str, *, hanging: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=prefix,
        subsequent_indent=prefix + hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _type(node: KeyNode, value: Any) -> str:
    """Type and range, why there is no value where there is none, and what else is to be known."""
    missing = ", required" if node.required else ", not set"
    resumed = ", may change when a run goes on" if node.may_change else ""
    return f"({node.allowed}{missing if value is None else ''}{resumed}{_read_if(node)})"


def _read_if(node: KeyNode) -> str:
    conditions = [f"only with {k} = {one_of(list(values))}" for k, values in node.only_if.items()]
    conditions += [f"not with {k} = {one_of([value])}" for k, value in node.not_with.items()]
    return "".join(f", {condition}" for condition in conditions)


def _describe(node: KeyNode, values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, child in node.keys.items():
        if not child.is_table:
            value = values.get(name, child.default)
            setting = (
                f"{prefix}{name}" if value is None else f"{prefix}{name} = {toml_value(value)}"
            )
            yield from _wrapped(f"{setting}  {_type(child, value)}", "  ", hanging="    ")
            yield from _wrapped(child.doc, "      ")
    for name, child in node.inner_tables():
        inner = values.get(name, {})
        inner = inner if isinstance(inner, Mapping) else {}  # a list of tables
        yield from ("", f"[{prefix}{name}]")
        required = f" (required: choose a {child.tag})" if child.tag and child.required else ""
        required += f" ({child.allowed})" if child.items else ""
        read_if = _read_if(child)
        condition = f" ({read_if[2:]})" if read_if else ""
        yield from _wrapped(child.doc + required + condition, "  ")
        for tag, table in child.tables().items():
            in_force = not tag or inner.get(child.tag) == tag
            if tag:
                yield from ("", f"[{prefix}{name}] {child.tag} = {toml_value(tag)}")
                yield from _wrapped(("(in force) " if in_force else "") + table.summary, "  ")
            yield from _describe(table, inner if in_force else {}, f"{prefix}{name}.")


def _commented(node: KeyNode, values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    tables = [name for name, child in node.keys.items() if _is_table(child, values.get(name))]
    for name, child in node.keys.items():
        if name not in tables:
            value = values.get(name)
            yield from _wrapped(child.doc, "# ")
            setting = f"{toml_key(name)} = "
            setting = f"# {setting}" if value is None else f"{setting}{toml_value(value)}  # "
            yield setting + _type(child, value)
    for name in tables:
        child, inner, path = node.keys[name], values.get(name), prefix + toml_key(name)
        yield ""
        read_if = _read_if(child)
        condition = f" ({read_if[2:]})" if read_if else ""
        yield from _wrapped(child.doc + condition, "# ")
        if inner is None:
            yield f"# [{path}]  (not set)"
            continue
        yield f"[{path}]"
        if child.values:
            child = KeyNode(keys=dict.fromkeys(inner, child.values))
        elif child.kinds:
            yield from _wrapped(f"One of {', '.join(map(repr, child.kinds))}.", "# ")
            yield f"{child.tag} = {toml_value(inner[child.tag])}"
            child = child.table(inner[child.tag])
        yield from _commented(child, inner, f"{path}.")


def _is_table(node: KeyNode, value: Any) -> bool:
    return not isinstance(value, list) and (
        node.is_table or (isinstance(value, Mapping) and bool(value))
    )
