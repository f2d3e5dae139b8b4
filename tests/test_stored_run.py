"""The run's own evaluation is that of its best checkpoint under its own settings, and no other."""

import shutil
from pathlib import Path

import pytest

from cdp_torchrec.commands import evaluate
from cdp_torchrec.config import ConfigError
from cdp_torchrec.distill.config import DistillExperimentConfig
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.stored_run import evaluation_directory, open_run
from tests.test_continuation import begin, nowhere

__all__ = ["nowhere"]  # a fixture of these tests, too


def place(path: str = "mine", *overrides: str) -> Path:
    return evaluation_directory(open_run(Path(path), overrides, ExperimentConfig))


def test_a_run_is_measured_into_its_own_directory() -> None:
    begin()
    assert place() == Path("mine")
    assert place("mine", "trainer.num_workers=2", "sharding.strategy=row_wise") == Path("mine")
    moved = f"data.dir={Path('data/quickstart').absolute()}"
    assert place("mine", moved) == Path("mine"), "the same dataset by another name"


def test_a_run_with_copies_of_its_tables_is_read_with_one() -> None:
    begin("sharding.sharding_group_size=1")
    assert place() == Path("mine")
    assert open_run(Path("mine"), [], ExperimentConfig).config.sharding.sharding_group_size is None


@pytest.mark.parametrize("alias", ["mine/../mine", "linked", None])
def test_the_runs_own_directory_by_another_name_is_its_own(
    alias: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where the run's config.toml is replaced by that of its evaluation."""
    begin()
    Path("linked").symlink_to("mine")
    found: list[Path] = []

    def evaluate_run(run: object, device: object, *, output: Path, **settings: object) -> None:
        found.append(output)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate_run", evaluate_run)
    monkeypatch.setattr(evaluate, "init_process_group", lambda ranks: None)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(["mine", *(["--output", alias] if alias else [])])
    assert found == [Path("mine")]


@pytest.mark.parametrize(
    "override", ["data.dir=other", "model.interest.num_inference_steps=2", "seed=9"]
)
def test_any_other_measurement_has_a_directory_of_its_own(override: str) -> None:
    begin()
    found = place("mine", override)
    assert found.parent == Path("mine", "evaluations")
    assert found == place("mine", override), "measured again into the same"
    assert found != place("mine", override, "data.history.max_length=50")


@pytest.mark.parametrize("config_class", [ExperimentConfig, DistillExperimentConfig])
def test_an_optimizer_of_a_trained_run_is_refused(config_class: type[ExperimentConfig]) -> None:
    """Fails where another rate is another measurement, or stands in a student's config.toml."""
    begin()
    own = open_run(Path("mine"), [], config_class).config.optimizer.dense.lr
    open_run(Path("mine"), [f"optimizer.dense.lr={own}"], config_class)
    message = r"optimizer\.dense\.lr = 0\.5: the run has .*, and only its training reads it"
    with pytest.raises(ConfigError, match=message):
        open_run(Path("mine"), ["optimizer.dense.lr=0.5"], config_class)


def test_the_directory_is_named_by_the_dataset() -> None:
    begin()
    assert place("mine", "data.dir=logs/june").name.startswith("june-")
    assert place("mine", "data.dir=logs/june") != place("mine", "data.dir=other/june")


def test_a_checkpoint_that_is_not_the_best_has_a_directory_of_its_own() -> None:
    begin()
    older, newer = (Path("mine", "checkpoints", f"step-0000000{n}") for n in (4, 8))
    shutil.copytree(older, newer)
    assert place() == place(str(newer)) == Path("mine")
    assert place(str(older)) == Path("mine", "evaluations", "step-00000004")


def test_a_checkpoint_away_from_its_run_is_measured_beside_itself() -> None:
    begin()
    shutil.copytree("mine/checkpoints/step-00000004", "kept/step-00000004")
    assert place("kept/step-00000004") == Path("kept", "evaluations", "step-00000004")
