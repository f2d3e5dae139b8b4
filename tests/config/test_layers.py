"""Claims about layers and overrides: how they are read and merged, and who set what."""

import re
from pathlib import Path
from typing import Literal

import pytest

from cdp_torchrec.config import Config, load_config
from cdp_torchrec.experiment_config import ExperimentConfig
from tests.config.sample import Cdp, Experiment, Model, Optimizer, Twin, layer, lines, load
from tests.paths import CONFIGS, ROOT


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_layers_merge_left_to_right_and_overrides_come_last() -> None:
    layer("a.toml", "seed = 1\n[trainer]\nglobal_batch_size = 8\nnum_ranks = 2")
    layer("b.toml", "seed = 2\n[trainer]\nnum_ranks = 4")
    config = load("seed=3", "a.toml", "b.toml")
    assert (config.seed, config.trainer.global_batch_size, config.trainer.num_ranks) == (3, 8, 4)
    assert load("b.toml", "a.toml").trainer.num_ranks == 2


def test_entries_of_a_table_with_free_keys_merge() -> None:
    layer("a.toml", "[data.column_weights]\nprice = 1\n'' = 1")
    layer("b.toml", "[data.column_weights]\n'' = 2")
    assert load("a.toml", "b.toml").data.column_weights == {"price": 1.0, "": 2.0}


def test_a_quoted_name_of_a_free_key_may_have_dots_as_in_toml() -> None:
    layer("a.toml", '[data.column_weights]\n"price.log" = 1')
    assert load("a.toml", 'data.column_weights."price.log"=2').data.column_weights == {
        "price.log": 2.0
    }
    assert lines("data.column_weights.p=1", 'data.column_weights."p"=2') == [
        "data.column_weights.p: set twice on the command line"
    ]


def test_a_list_is_replaced_as_a_whole() -> None:
    layer("a.toml", "[model]\nover_arch_layer_sizes = [1, 2, 3]")
    assert load("a.toml", "model.over_arch_layer_sizes=[4]").model.over_arch_layer_sizes == (4,)


def test_setting_one_key_keeps_the_other_defaults_of_the_section() -> None:
    assert load("sparse.schedule=linear").sparse == Optimizer(lr=5e-4, schedule="linear")
    assert load("model.interest.num_train_timesteps=7").model.interest == Cdp(num_train_timesteps=7)


def test_a_changed_kind_replaces_the_table() -> None:
    layer("cdp.toml", "[model.interest]\nkind = 'cdp'\nnum_train_timesteps = 7")
    layer("twin.toml", "[model.interest]\nkind = 'twin'\nnum_heads = 3")
    assert load("cdp.toml", "twin.toml").model.interest == Twin(num_heads=3)
    assert load("cdp.toml", "model.interest.kind=twin").model.interest == Twin()
    same = load("cdp.toml", "model.interest.kind=cdp")
    assert same.model.interest == Cdp(num_train_timesteps=7)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_kind_override_does_not_undo_another_override(reverse: bool) -> None:
    overrides = ["model.interest.num_heads=3", "model.interest.kind=twin"]
    assert load(*sorted(overrides, reverse=reverse)).model.interest == Twin(num_heads=3)


def test_a_kind_that_chooses_no_table_leaves_the_other_keys() -> None:
    class Schedule(Config):
        kind: Literal["constant", "cosine"] = "constant"
        warmup_steps: int = 0

    class Root(Config):
        schedule: Schedule = Schedule()

    layer("a.toml", "[schedule]\nwarmup_steps = 100\nkind = 'constant'")
    config = load_config(Root, ["a.toml", "schedule.kind=cosine"])
    assert config.schedule == Schedule(kind="cosine", warmup_steps=100)


def test_a_layer_extends_layers_beside_itself() -> None:
    layer("configs/base.toml", "seed = 1\n[trainer]\nnum_ranks = 2")
    layer("configs/data/log.toml", "extends = '../base.toml'\n[data]\ndir = 'log'")
    layer("configs/quick.toml", "extends = ['base.toml', 'data/log.toml']\nseed = 2")
    config = load_config(Experiment, ["configs/quick.toml"])
    assert (config.seed, config.trainer.num_ranks, config.data.dir) == (2, 2, Path("log"))


def test_a_layer_extended_twice_does_not_undo_what_lies_between() -> None:
    layer("base.toml", "seed = 1")
    layer("a.toml", "extends = 'base.toml'\nseed = 2")
    layer("b.toml", "extends = 'base.toml'\n[trainer]\nnum_ranks = 2")
    assert load("a.toml", "b.toml").seed == 2


def test_a_layer_extends_those_of_the_package_also_from_a_checkout_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a file of this name below the working directory hides the package's."""
    monkeypatch.chdir(ROOT)
    for name in ("configs/interest/din.toml", "interest/din.toml"):
        mine = tmp_path / "mine.toml"
        mine.write_text(f"extends = '{name}'\n[data]\ndir = 'log'")
        assert load_config(ExperimentConfig, [str(mine)]).model.interest.kind == "din"


def test_bad_extends_are_named() -> None:
    layer("a.toml", "extends = 'b.toml'")
    layer("b.toml", "extends = 'a.toml'")
    layer("c.toml", "extends = 3")
    layer("d.toml", "extends = 'configs/none.toml'")
    assert lines("a.toml", "c.toml", "d.toml") == [
        "a.toml: extends itself (a.toml -> b.toml -> a.toml)",
        "c.toml: extends = 3: must be a path or a list of paths",
        "configs/none.toml: no such file (did you mean 'configs/interest/none.toml'?) "
        "[extended by d.toml]",
    ]


def test_default_layers_are_read_only_when_no_layer_is_named() -> None:
    layer("quick.toml", "seed = 1\n[data]\ndir = 'quick'")
    layer("mine.toml", "[data]\ndir = 'mine'")
    quick = [Path("quick.toml")]
    overridden = load_config(Experiment, ["trainer.num_ranks=2"], default_layers=quick)
    assert (overridden.seed, overridden.trainer.num_ranks) == (1, 2)
    mine = load_config(Experiment, ["mine.toml"], default_layers=quick)
    assert (mine.seed, mine.data.dir) == (0, Path("mine"))


def test_a_mistake_is_traced_to_the_layer_that_made_it() -> None:
    layer("base.toml", "seed = -1\nbetas = ['x', 1]")
    layer("a.toml", "extends = 'base.toml'\n[dense]\nlr = -1\n[trainer]\nnum_ranks = 0")
    assert lines("a.toml", "dense.lr=-2") == [
        "dense.lr = -2: must be a number > 0 [command line]",
        "trainer.num_ranks = 0: must be an integer > 0 [a.toml]",
        "seed = -1: must be an integer >= 0 [base.toml]",
        "betas.0 = 'x': must be a number [base.toml]",
    ]


def test_an_argument_that_is_no_setting_is_told_both_forms() -> None:
    forms = "is neither a layer (a path ending in .toml) nor an override (section.key=value, "
    assert lines("--seed=1", "cdp") == [
        f"'--seed=1' {forms}without leading dashes)",
        f"'cdp' {forms}without leading dashes)",
    ]


def test_unreadable_layers_are_named_with_file_and_line() -> None:
    layer("configs/cdp.toml", "seed = 1")
    layer("broken.toml", "seed = 1\nlr 3\n")
    Path("latin.toml").write_bytes(b"# caf\xe9")
    Path("dir.toml").mkdir()
    found = lines("configs/cpd.toml", "broken.toml", "latin.toml", "dir.toml")
    assert found[0] == "configs/cpd.toml: no such file (did you mean 'configs/cdp.toml'?)"
    assert re.fullmatch(r"broken\.toml: not valid TOML: .*line 2.*", found[1])
    assert found[2].startswith("latin.toml: cannot be read: ")
    assert found[3].startswith("dir.toml: cannot be read: ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["seed=1", "seed=2"], "seed: set twice on the command line"),
        (
            ["trainer={compile = true}", "trainer.compile=false"],
            "trainer.compile: set twice on the command line, by 'trainer=' too",
        ),
        (
            ["trainer.compile=false", "trainer={compile = true}"],
            "trainer: set twice on the command line, by 'trainer.compile=' too",
        ),
        (["seed=1", "seed.x=2"], "seed.x: set twice on the command line, by 'seed=' too"),
        (["a.toml", "./a.toml"], "./a.toml: the layer is named twice"),
    ],
)
def test_nothing_is_set_twice(arguments: list[str], expected: str) -> None:
    layer("a.toml", "")
    assert lines(*arguments) == [expected]


# --- values of overrides -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("fast", "fast"),
        ("a=b=c", "a=b=c"),
        ("s3://bucket/day=1/part.parquet", "s3://bucket/day=1/part.parquet"),
        ("/data/log.v2/x.toml", "/data/log.v2/x.toml"),
        ('"7"', "7"),
        ("'true'", "true"),
        ('""', ""),
        ("  padded ", "padded"),
        ("run#3", "run#3"),
        ("3#x", "3#x"),
        ("1, seed = 3", "1, seed = 3"),
        ("x\nseed = 3", "x\nseed = 3"),
        ("1.5.2", "1.5.2"),
    ],
)
def test_a_bare_word_is_a_string(text: str, value: str) -> None:
    config = load(f"trainer.notes={text}")
    assert (config.trainer.notes, config.seed) == (value, 0)


def test_values_of_overrides_are_toml() -> None:
    config = load(
        "seed = 1_000",
        "dense.lr=1e-4",
        "sparse.lr=1",
        "trainer.compile=true",
        "model.over_arch_layer_sizes=[8, 4]",
        'model.interest={kind = "cdp", noise_loss_weight = 3}',
        "data.column_weights.price-log=0.5",
    )
    assert (config.seed, config.dense.lr, config.sparse.lr) == (1000, 1e-4, 1.0)
    assert config.trainer.compile is True
    assert config.model == Model(over_arch_layer_sizes=(8, 4), interest=Cdp(noise_loss_weight=3.0))
    assert config.data.column_weights == {"price-log": 0.5}


@pytest.mark.parametrize("text", ["[1, 2", "{kind =", '"open', "'open", "[1] 2"])
def test_broken_toml_is_no_bare_word(text: str) -> None:
    (line,) = lines(f"trainer.notes={text}")
    assert line.startswith(f"trainer.notes = {text}: not valid TOML: ")


def test_an_empty_override_is_refused() -> None:
    assert lines("trainer.notes=") == [
        'trainer.notes = : no value; an empty string is "" [command line]'
    ]


@pytest.mark.parametrize("name", ["configs/data/trivago.toml", "data/trivago.toml"])
def test_a_layer_of_the_package_is_found_from_any_working_directory(name: str) -> None:
    mine = load_config(ExperimentConfig, [name, "interest/din.toml"])
    assert mine.data.dir == Path("data/trivago")
    layer("mine.toml", f"extends = ['{name}', 'configs/interest/din.toml']\nseed = 3")
    assert load_config(ExperimentConfig, ["mine.toml"]) == mine.model_copy(update={"seed": 3})


def test_a_file_in_the_working_directory_goes_before_a_layer_of_the_package() -> None:
    layer("interest/cdp.toml", "seed = 3")
    assert load("interest/cdp.toml").seed == 3


def test_a_layer_that_is_not_there_names_those_that_it_may_be() -> None:
    assert lines("triavgo.toml", "configs/interst/din.toml", "data/mine/starter.toml")[:3] == [
        "triavgo.toml: no such file (did you mean 'configs/data/trivago.toml'?)",
        "configs/interst/din.toml: no such file (did you mean 'configs/interest/din.toml'?)",
        "data/mine/starter.toml: no such file",
    ]
    found = lines("y.toml")[0]
    assert found.startswith("y.toml: no such file (layers that come with the package: configs/")
    names = sorted(path.stem for path in (CONFIGS / "data").glob("*.toml"))
    assert f"configs/data/{{{','.join(names)}}}.toml" in found
