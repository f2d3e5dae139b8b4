"""Settings that no docstring explains."""

from collections.abc import Iterator

from pydantic import BaseModel

from cdp_torchrec.config.keys import KeyNode, key_tree


def undocumented(config_class: type[BaseModel]) -> list[str]:
    """Dotted keys without a docstring; tags such as `kind` are explained by their section."""
    return list(_undocumented(key_tree(config_class), ""))


def _undocumented(node: KeyNode, prefix: str) -> Iterator[str]:
    for name, child in node.keys.items():
        if not child.doc:
            yield prefix + name
    for name, child in node.inner_tables():
        for tag, table in child.tables().items():
            yield from _undocumented(table, f"{prefix}{name}{f'({tag})' if tag else ''}.")
