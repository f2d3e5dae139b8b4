"""Claims about what is written of a configuration: files, help and the editor schema."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from cdp_torchrec.commands import show_config
from cdp_torchrec.config import Config, ConfigError, dump_toml, load_config, load_toml
from cdp_torchrec.config.help import commented_toml, describe, layer_schema
from tests.config.sample import (
    Cdp,
    Data,
    Experiment,
    Model,
    Optimizer,
    Trainer,
    Twin,
    layer,
    load,
)
from tests.config.undocumented import undocumented
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


CONFIGS = [
    (),
    ("model.interest.kind=twin", "model.over_arch_layer_sizes=[]"),
    ("trainer.max_steps=3", "dense.lr=1e-30", "seed=9007199254740993"),
    ("data.column_weights={}", 'trainer.notes="""quote \\" \\\\ \\u00e9 \\n tab\\t"""'),
    ('data.column_weights={"a.b" = 1, "" = 0.1, plain = -2.5}', "betas=[0, 1]"),
]


@pytest.mark.parametrize("arguments", CONFIGS)
@pytest.mark.parametrize("write", [dump_toml, commented_toml])
def test_a_written_config_loads_back_equal(arguments, write) -> None:
    config = load(*arguments)
    layer("saved.toml", write(config))
    assert load_toml(Experiment, Path("saved.toml")) == config


def test_a_config_that_no_layer_can_say_is_not_written() -> None:
    config = Experiment(data=Data(dir=Path("log"), column_weights={"a": float("inf")}))
    with pytest.raises(ConfigError, match=r"data\.column_weights\.a = inf: must be a finite"):
        dump_toml(config)

    class Root(Config):
        trainer: Trainer = Trainer(max_steps=5)

    with pytest.raises(ValueError, match="no layer can say"):
        dump_toml(Root(trainer=Trainer()))


def fields(config_class: type[Config]) -> set[str]:
    return set(config_class.model_fields) - {"kind"}


def test_help_shows_every_key_with_type_default_and_docstring() -> None:
    text = " ".join(describe(Experiment).split())
    for section in (Experiment, Data, Model, Cdp, Twin, Optimizer, Trainer):
        for name in fields(section):
            assert str(section.model_fields[name].description) in text
    assert "sparse.lr = 0.0005 (a number > 0) Learning rate per step." in text
    assert "data.dir (a path, required) Dataset directory." in text
    assert "trainer.max_steps (an integer > 0, not set)" in text
    assert '[model.interest] kind = "cdp" (in force) Diffusion on the pooled history.' in text
    assert '[model.interest] kind = "twin" Attention over the retrieved history.' in text
    assert "model.interest.num_heads = 2 (an integer > 0) Attention heads." in text


def test_help_on_a_config_shows_its_values() -> None:
    config = load("model.interest.kind=twin", "model.interest.num_heads=8", "trainer.max_steps=9")
    text = " ".join(describe(Experiment, config).split())
    assert 'kind = "twin" (in force)' in text
    assert "model.interest.num_heads = 8 " in text
    assert "trainer.max_steps = 9 " in text
    assert "model.interest.num_train_timesteps = 100 " in text


def test_commented_toml_explains_every_key_right_above_it() -> None:
    shown = commented_toml(load("model.interest.kind=twin")).split("\n")
    above = {line.partition(" =")[0]: shown[at - 1] for at, line in enumerate(shown) if at}
    assert above["seed"] == "# Seed of every draw."
    assert above["num_heads"] == "# Attention heads."
    assert above["# max_steps"] == "# Steps to train; not set: the whole split."
    assert above["[trainer]"] == "# Loop."
    assert "seed = 0  # (an integer >= 0)" in shown
    assert "# max_steps = (an integer > 0, not set)" in shown


def test_undocumented_keys_are_found_wherever_they_hide() -> None:
    class Leaf(Config):
        x: int = 0

    class Left(Leaf):
        kind: Literal["left"] = "left"

    class Right(Leaf):
        kind: Literal["right"] = "right"

    class Root(Config):
        plain: int = 0
        choice: Annotated[Left | Right, Field(discriminator="kind")] = Left()
        many: tuple[Leaf, ...] = ()
        named: dict[str, Leaf] = {}
        maybe: Leaf | None = None

    sections = ["plain", "choice", "many", "named", "maybe"]
    inside = ["choice(left).x", "choice(right).x", "many[].x", "named.<name>.x", "maybe.x"]
    assert undocumented(Root) == sections + inside
    assert undocumented(Experiment) == []


def test_the_editor_schema_knows_extends_and_requires_nothing() -> None:
    schema = layer_schema(Experiment)
    assert not {"'required'", "'oneOf'"} & set(re.findall(r"'\w+'", str(schema)))
    assert {*fields(Experiment), "extends"} == set(schema["properties"])


def test_written_toml_is_plain_toml() -> None:
    data = tomllib.loads(commented_toml(load()))
    assert data == tomllib.loads(dump_toml(load()))
    assert data["model"]["interest"]["kind"] == "cdp"


# --- the real configuration ----------------------------------------------------------------------

TRIVAGO = str(ROOT / "configs/data/trivago.toml")
CDP = str(ROOT / "configs/interest/cdp.toml")
CDP_TIMESTEP = str(ROOT / "configs/interest/cdp_timestep.toml")


def test_every_key_of_an_experiment_is_documented() -> None:
    from cdp_torchrec.experiment_config import ExperimentConfig

    assert undocumented(ExperimentConfig) == []


OTHER_SCRIPTS = ("compare", "mappings", "planning", "benchmark")
LAYERS = sorted(
    path
    for path in ROOT.glob("configs/**/*.toml")
    if path.relative_to(ROOT).parts[1] not in OTHER_SCRIPTS
)


@pytest.mark.parametrize("path", LAYERS, ids=lambda p: p.stem)
def test_every_layer_of_the_repository_fits(path: Path) -> None:
    from cdp_torchrec.experiment_config import ExperimentConfig

    preset = CDP_TIMESTEP if path.stem == "x0_onestep" else CDP
    below = [layer for layer in (TRIVAGO, preset) if layer != str(path)]
    config = load_config(ExperimentConfig, [*below, str(path)])
    layer("saved.toml", dump_toml(config))
    assert load_toml(ExperimentConfig, Path("saved.toml")) == config


def test_layers_of_other_scripts_fit_them() -> None:
    from cdp_torchrec.planning.config import PlanningExperimentConfig
    from cdp_torchrec.planning.measured.config import PlansConfig
    from cdp_torchrec.planning.outside_config import OutsideConfig

    load_toml(OutsideConfig, ROOT / "configs/planning/mlperf_dlrm.toml")
    assert undocumented(OutsideConfig) == []
    for name in ("paper", "production"):
        load_toml(PlanningExperimentConfig, ROOT / f"configs/planning/{name}.toml")
    load_toml(PlansConfig, ROOT / "configs/benchmark/plans.toml")


def test_show_config_prints_a_layer_that_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    main = show_config.main
    main([TRIVAGO, CDP, "seed=7"])
    shown = capsys.readouterr().out
    main([layer("saved.toml", shown)])
    assert capsys.readouterr().out == shown
    assert "\nseed = 7  #" in shown
