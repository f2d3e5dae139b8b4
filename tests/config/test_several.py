"""A key that takes one table or a list of them reads both, and mistakes in both name their key."""

from pathlib import Path

import pytest

from cdp_torchrec.config import (
    Config,
    ConfigError,
    OneOrSeveral,
    dump_toml,
    load_config,
    load_toml,
    several,
)
from cdp_torchrec.config.help import commented_toml, describe, layer_schema
from cdp_torchrec.config.sections import help_text


class Rule(Config):
    """Which rows count."""

    column: str
    """That decides it."""
    above: float = 0.0
    """Smallest number that does not count."""


class Log(Config):
    """A log."""

    only: OneOrSeveral[Rule] = ()
    """Which rows are read."""
    name: str = "log"
    """What it is called."""


class Mapping(Config):
    """What a log means."""

    log: Log = Log()
    """The log."""


READ = {
    "": [],
    "log.only=[]": [],
    "log.only={column='a'}": [("a", 0)],
    "log.only.column=a": [("a", 0)],
    "log.only=[{column='a'}]": [("a", 0)],
    "log.only=[{column='a'}, {column='b', above=2}]": [("a", 0), ("b", 2)],
}


@pytest.mark.parametrize("setting", READ)
def test_one_and_several_are_read_and_written(setting: str, tmp_path: Path) -> None:
    config = load_config(Mapping, [setting] if setting else [])
    assert [(rule.column, rule.above) for rule in several(config.log.only)] == READ[setting]
    for name, text in (("plain", dump_toml(config)), ("commented", commented_toml(config))):
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        assert load_toml(Mapping, path) == config
    assert "log.only.above" in describe(Mapping, config)


LAYERED = {
    ("log.only = {column = 'a', above = 1}", "log.only.above=2"): [("a", 2)],
    ("log.only = {column = 'a', above = 1}", "log.only=[]"): [],
    ("log.only = {column = 'a'}", "log.only=[{column='b'}, {column='c'}]"): [("b", 0), ("c", 0)],
    ("log.only = [{column = 'a'}, {column = 'b'}]", "log.only={column='c'}"): [("c", 0)],
    ("[[log.only]]\ncolumn = 'a'\n[[log.only]]\ncolumn = 'b'", "log.name=x"): [("a", 0), ("b", 0)],
}


@pytest.mark.parametrize("layer", LAYERED)
def test_a_table_changes_a_table_and_everything_else_replaces(
    layer: tuple[str, str], tmp_path: Path
) -> None:
    text, setting = layer
    (tmp_path / "layer.toml").write_text(text)
    config = load_config(Mapping, [str(tmp_path / "layer.toml"), setting])
    assert [(rule.column, rule.above) for rule in several(config.log.only)] == LAYERED[layer]


MISTAKES = {
    "log.only=3": "log.only = 3: must be a table or a list of tables [command line]",
    "log.only=[3]": "log.only.0 = 3: must be a table [command line]",
    "log.only={above=1}": "log.only.column: required key is missing (a string)",
    "log.only=[{column='a'}, {above=1}]": "log.only.1.column: required key is missing (a string)",
    "log.only={column='a', abov=1}": "log.only.abov: unknown key (did you mean 'above'?)",
    "log.only=[{column='a'}, {column='b', abov=1}]": "log.only.1.abov: unknown key (did you mean",
    "log.only={column='a', above='x'}": "log.only.above = 'x': must be a number [command line]",
    "log.only=[{column='a', above='x'}]": "log.only.0.above = 'x': must be a number [command line",
}


@pytest.mark.parametrize("setting", MISTAKES)
def test_a_mistake_names_the_key_as_it_was_written(setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Mapping, [setting])
    assert MISTAKES[setting] in str(caught.value)
    assert str(caught.value).count("\n") == 1


def test_help_says_that_a_list_may_stand_there_and_explains_its_keys() -> None:
    rules = "log.only=[{column='a'}, {column='b'}]"
    for arguments in (["--help"], ["--help", "log.only"], [rules, "--help"]):
        text = " ".join(help_text("usage", Mapping, arguments).split())
        assert "[log.only] Which rows are read. (a table or a list of tables)" in text
        assert "log.only.column (a string, required) That decides it." in text


def test_the_editor_schema_takes_both() -> None:
    forms = layer_schema(Mapping)["$defs"]["Log"]["properties"]["only"]["anyOf"]
    rule = {"$ref": "#/$defs/Rule"}
    assert forms == [rule, {"items": rule, "type": "array"}]
