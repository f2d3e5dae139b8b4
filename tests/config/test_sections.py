"""Claims about --help: the whole of it, and one section or key of it."""

from pathlib import Path

import pytest

from cdp_torchrec.config import ConfigError
from cdp_torchrec.config.sections import asks_help, help_text
from cdp_torchrec.experiment_config import ExperimentConfig
from tests.config.sample import Experiment, layer


def explain(*arguments: str, sections: list[str] | None = None) -> str:
    return help_text("Usage.", Experiment, arguments, sections=sections)


def test_help_without_a_section_is_the_usage_and_every_key() -> None:
    shown = explain("--help")
    assert shown.startswith("Usage.\n")
    assert all(key in shown for key in ("seed", "data.dir", "dense.lr", "model.interest.num_heads"))
    assert "--help SECTION explains one section or key, such as --help model." in shown


def test_a_command_can_explain_its_own_sections_only() -> None:
    shown = explain("-h", sections=["trainer"])
    assert "trainer.max_steps" in shown
    assert "dense.lr" not in shown


def test_a_section_is_explained_alone() -> None:
    shown = explain("--help", "trainer")
    assert shown.startswith("[trainer]\n")
    assert "trainer.max_steps  (an integer > 0, not set)" in shown
    assert "Usage." not in shown
    assert "dense.lr" not in shown


def test_several_sections_and_keys_are_explained_one_after_the_other() -> None:
    shown = explain("--help", "trainer", "dense.lr")
    assert shown.index("[trainer]") < shown.index("dense.lr = ")


def test_of_several_tables_each_is_named_and_one_explained_on_request() -> None:
    shown = help_text("", ExperimentConfig, ["--help", "model.interest"])
    assert all(f'[model.interest] kind = "{kind}"' in shown for kind in ("cdp", "din", "twin"))
    assert "model.interest." not in shown.partition("--help")[0]
    listed = shown.partition("--help model.interest.")[2].partition(" explains one of kind = ")[2]
    assert all(f"'{kind}'" in listed for kind in ("cdp", "din", "twin"))
    twin = explain("--help", "model.interest.twin")
    assert "model.interest.num_heads = 2" in twin
    assert "num_train_timesteps" not in twin
    assert explain("--help", "model.interest.twin.num_heads") in twin


def test_layers_on_the_line_decide_table_and_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layer("mine.toml", "[model.interest]\nkind = 'twin'\nnum_heads = 8")
    shown = explain("mine.toml", "seed=3", "--help", "model.interest", "seed")
    assert '[model.interest] kind = "twin"\n  (in force)' in shown
    assert "model.interest.num_heads = 8" in shown
    assert "seed = 3" in shown
    assert "num_train_timesteps" not in shown
    assert "--help model.interest.cdp explains one of kind = 'cdp'." in shown


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("interest", "did you mean 'model.interest'?"),
        ("model.interst", "did you mean 'model.interest'"),
        ("max_step", "did you mean 'trainer.max_steps'?"),
        ("zzz", "sections: "),
    ],
)
def test_an_unknown_section_is_told_near_ones(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="no section and no key") as caught:
        explain("--help", name)
    assert str(caught.value).startswith(f"--help {name}: ")
    assert hint in str(caught.value)


def test_a_word_before_the_flag_is_no_section() -> None:
    assert explain("runs/mine", "--help") == explain("--help")
    assert asks_help(["runs/mine", "-h"])
    assert not asks_help(["runs/mine", "run.dir=-h"])
