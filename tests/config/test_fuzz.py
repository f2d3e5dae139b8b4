"""Any text as configuration gives a configuration or a ConfigError, nothing else."""

import math
from pathlib import Path
from typing import Any

import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.config.keys import KeyNode, key_tree
from cdp_torchrec.experiment_config import ExperimentConfig
from tests.fuzz import FUZZ, SCALARS, nested, without_none

_VALUES = nested(SCALARS | st.dates() | st.datetimes())


def _keys(node: KeyNode, prefix: str = "") -> list[str]:
    """Every key of every table, by its dotted name."""
    found = []
    for table in node.tables().values():
        for name, child in table.keys.items():
            found += [f"{prefix}{name}", *_keys(child, f"{prefix}{name}.")]
    return found


_KEYS = sorted(set(_keys(key_tree(ExperimentConfig))))


def load(*arguments: str) -> ExperimentConfig | None:
    """None: refused, with a message."""
    try:
        return load_config(ExperimentConfig, arguments)
    except ConfigError as error:
        assert str(error).strip()
        return None


@FUZZ
@given(st.text())
def test_any_text_as_a_layer(tmp_path: Path, text: str) -> None:
    layer = tmp_path / "layer.toml"
    layer.write_bytes(text.encode(errors="surrogatepass"))
    load(str(layer))


@FUZZ
@given(st.binary())
def test_any_bytes_as_a_layer(tmp_path: Path, content: bytes) -> None:
    layer = tmp_path / "layer.toml"
    layer.write_bytes(content)
    load(str(layer))


@FUZZ
@given(st.text(min_size=1), st.text())
def test_any_text_as_an_override(key: str, value: str) -> None:
    load(f"{key}={value}")


@FUZZ
@given(st.data())
def test_any_value_of_any_key(tmp_path: Path, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(_KEYS))
    value = data.draw(_VALUES)
    layer = tmp_path / "layer.toml"
    layer.write_text(_toml(key, value))
    config = load(str(layer))
    if config is not None and isinstance(value, float):
        assert not math.isnan(value)


@FUZZ
@given(st.data())
def test_any_toml_value_as_an_override_of_any_key(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(_KEYS))
    load(f"{key}={data.draw(st.text(max_size=40))}")


def _toml(key: str, value: Any) -> str:
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tomli_w.dumps(without_none(tree))
