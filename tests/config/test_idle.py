"""Claims about settings that nothing reads: who is told, and who is not."""

from pathlib import Path
from typing import Annotated, Literal

import pytest

from cdp_torchrec.config import (
    MAY_CHANGE,
    Config,
    ConfigError,
    dump_toml,
    load_config,
    load_toml,
    not_with,
    only_if,
)
from cdp_torchrec.config.help import commented_toml, describe
from tests.config.sample import layer


class Sizes(Config):
    """Sizes of the attention."""

    heads: int = 4
    """Heads."""


class Module(Config):
    """A module."""

    pooling: Literal["mean", "attention", "max"] = "mean"
    """How."""
    attention: Annotated[Sizes, only_if(pooling=("attention", "max"))] = Sizes(heads=8)
    """The attention."""
    experts: tuple[Literal["user", "scene"], ...] = ("user", "scene")
    """Experts."""
    user_width: Annotated[int, MAY_CHANGE, only_if(experts="user")] = 3
    """Of the expert."""
    weight: float = 1.0
    """Of the loss."""
    levels: Annotated[str, not_with(weight=0.0)] = "all"
    """Levels with a loss."""
    fusion: Annotated[str, not_with(experts=())] = "mean"
    """Of the experts."""


class Model(Config):
    """Modules by name."""

    module: Module = Module()
    """The one."""
    others: dict[str, Module] = {}
    """More of them."""


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def mistakes(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as found:
        load_config(Model, arguments)
    return [line.strip() for line in str(found.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["module.attention.heads=2"],
            "module.attention.heads = 2: has no effect with module.pooling = 'mean', "
            "only with 'attention' or 'max' [command line]",
        ),
        (
            ["module.experts=['scene']", "module.user_width=5"],
            'module.user_width = 5: has no effect with module.experts = ["scene"], '
            "only with 'user' [command line]",
        ),
        (
            ["module.weight=0", "module.levels=one"],
            "module.levels = 'one': has no effect with module.weight = 0.0 [command line]",
        ),
        (
            ["module.experts=[]", "module.fusion=sum"],
            "module.fusion = 'sum': has no effect with module.experts = [] [command line]",
        ),
        (
            ["others.b.attention.heads=2"],
            "others.b.attention.heads = 2: has no effect with others.b.pooling = 'mean', "
            "only with 'attention' or 'max' [command line]",
        ),
    ],
)
def test_what_nothing_reads_is_refused_with_the_key_that_is_the_reason(
    arguments: list[str], message: str
) -> None:
    assert mistakes(*arguments) == [message]


@pytest.mark.parametrize(
    "arguments",
    [
        ["module.pooling=max", "module.attention.heads=2"],
        ["module.attention.heads=8"],
        ["module.user_width=5"],
        ["others.b={pooling='attention', attention={heads=2}}"],
    ],
)
def test_what_is_read_or_as_ever_is_accepted(arguments: list[str]) -> None:
    load_config(Model, arguments)


def test_a_later_layer_may_make_earlier_settings_idle_and_no_earlier_one() -> None:
    layer("sizes.toml", "[module]\npooling = 'attention'\nattention.heads = 2")
    layer("mean.toml", "[module]\npooling = 'mean'")
    assert load_config(Model, ["sizes.toml", "mean.toml"]).module.attention.heads == 2
    assert load_config(Model, ["sizes.toml", "module.pooling=mean"]).module.attention.heads == 2
    layer("later.toml", "[module]\nattention.heads = 2")
    assert mistakes("mean.toml", "later.toml")[0].endswith("[later.toml]")
    assert mistakes("sizes.toml", "mean.toml", "module.attention.heads=3")


def test_a_file_that_contradicts_itself_is_named() -> None:
    layer("both.toml", "[module]\npooling = 'mean'\nattention.heads = 2")
    assert mistakes("both.toml")[0].endswith("only with 'attention' or 'max' [both.toml]")


def test_a_configuration_that_ran_before_is_read_as_it_is(tmp_path: Path) -> None:
    base = tmp_path / "config.toml"
    base.write_text("[module]\npooling = 'mean'\nattention.heads = 2\n")
    assert load_toml(Model, base).module.attention.heads == 2
    assert load_config(Model, ["module.user_width=5"], base=base).module.user_width == 5
    with pytest.raises(ConfigError, match=r"attention\.heads = 3: has no effect"):
        load_config(Model, ["module.attention.heads=3"], base=base)


def test_a_configuration_that_was_saved_is_a_layer_whatever_is_idle_in_it() -> None:
    layer("sizes.toml", "[module]\npooling = 'attention'\nattention.heads = 2")
    config = load_config(Model, ["sizes.toml", "module.pooling=mean"])
    for saved in (commented_toml(config), dump_toml(config)):
        layer("saved.toml", saved)
        assert load_config(Model, ["saved.toml"]) == config
        assert mistakes("saved.toml", "module.attention.heads=3")


def test_a_value_that_the_run_has_may_be_repeated(tmp_path: Path) -> None:
    base = tmp_path / "config.toml"
    base.write_text("[module]\npooling = 'mean'\nattention.heads = 2\n")
    again = load_config(Model, ["module.attention.heads=2"], base=base)
    assert again.module.attention.heads == 2


def test_the_help_says_when_a_key_is_read() -> None:
    told = describe(Model)
    assert (
        "user_width = 3  (an integer, may change when a run goes on, only with experts = 'user')"
        in told
    )
    assert 'levels = "all"  (a string, not with weight = 0.0)' in told
    assert "The attention. (only with pooling = 'attention' or 'max')" in told
    assert "# The attention. (only with pooling = 'attention' or 'max')" in commented_toml(Model())
