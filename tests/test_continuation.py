"""A run goes on as it was begun, or is refused; a fork may differ."""

import json
from pathlib import Path

import pytest

from cdp_torchrec.config import ConfigError, dump_toml, load_config, load_toml
from cdp_torchrec.config.changes import changeable
from cdp_torchrec.continuation import (
    check_unchanged,
    flattered,
    load_training,
    measured_on_training,
)
from cdp_torchrec.data.identity import DatasetDigest
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.checksums import record_text
from cdp_torchrec.run.records import (
    FORMAT_VERSION,
    CheckpointError,
    CheckpointRecord,
    Progress,
)
from cdp_torchrec.run.saved import saved_checkpoints
from cdp_torchrec.whole_file import write_whole
from tests.paths import CONFIGS

LINE = [
    str(CONFIGS / "data" / "quickstart.toml"),
    str(CONFIGS / "interest" / "cdp.toml"),
    "seed=7",
    "optimizer.dense.lr=0.003",
    "run.dir=mine",
]
RESUME = ["run.dir=mine", "run.resume=true"]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def begin(*settings: str, ranks: int = 1) -> ExperimentConfig:
    """What a training leaves that was killed behind its checkpoint of step 4."""
    config = load_training([*LINE, *settings])
    checkpoint = Path("mine", "checkpoints", "step-00000004")
    write_record(checkpoint, config, ranks=ranks)
    for folder in (checkpoint, Path("mine")):
        write_whole(folder / "config.toml", dump_toml(config))
    return config


def write_record(checkpoint: Path, config: ExperimentConfig, *, ranks: int = 1) -> None:
    record = CheckpointRecord(
        format_version=FORMAT_VERSION,
        release="0.1.0",
        progress=Progress(4, 1024),
        dataset_digest=DatasetDigest(vocabularies={}, features={}, history={}),
        world_size=ranks,
        files={"config.toml": record_text(dump_toml(config))},
    )
    write_whole(checkpoint / "checkpoint.json", record.sealed())


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load_training(arguments)
    return str(raised.value)


def without_run(config: ExperimentConfig) -> dict[str, object]:
    return config.model_dump(exclude={"run": {"resume", "fork_from"}})


def test_a_resume_alone_has_the_runs_own_settings_and_not_those_of_the_quickstart() -> None:
    begun = begin()
    assert without_run(load_training(RESUME)) == without_run(begun)


def test_the_line_that_began_a_run_resumes_it_too() -> None:
    begun = begin("trainer.max_steps=20")
    again = load_training([*LINE, "trainer.max_steps=20", "run.resume=true"])
    assert without_run(again) == without_run(begun)


def test_layers_that_change_the_kind_on_their_way_are_no_change() -> None:
    din = str(CONFIGS / "interest" / "din.toml")
    begun = begin(din, "model.interest.attention.activation=relu")
    line = [*LINE, din, "run.resume=true"]
    assert without_run(load_training(line)) == without_run(begun)


@pytest.mark.parametrize(
    "setting",
    [
        "trainer.max_steps=99",
        "trainer.max_epochs=9",
        "trainer.num_workers=2",
        "trainer.checkpoint_every_steps=3",
        "trainer.keep_checkpoints=5",
        "trainer.log_every_steps=1",
        "trainer.validate_every_steps=7",
        "trainer.patience=2",
        "sharding.strategy=row_wise",
        "sharding.hardware=a10",
        "model.compile=true",
        "data.dir=moved",
    ],
)
def test_what_decides_no_result_may_change(setting: str) -> None:
    begun = begin()
    Path("moved").mkdir()
    resumed = load_training([*RESUME, setting])
    assert without_run(resumed) != without_run(begun)
    assert without_run(resumed) == without_run(load_training([*LINE, setting]))


def test_a_dataset_that_moved_to_nowhere_is_not_made_anew() -> None:
    begin()
    with pytest.raises(ConfigError, match=r"data\.dir = typo: there is nothing; .* was data/quick"):
        load_training([*RESUME, "data.dir=typo"])
    assert load_training(RESUME).data.dir == Path("data/quickstart")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("seed=8", "seed = 8: the run has 7"),
        ("data.validation_fraction=0.4", "data.validation_fraction = 0.4: the run has 0.1"),
        ("trainer.validation_metric=log_loss", "= 'log_loss': the run has 'gauc'"),
        ("trainer.global_batch_size=64", "trainer.global_batch_size = 64: the run has 4096"),
        ("optimizer.sparse.kind=rowwise_adagrad", "= 'rowwise_adagrad': the run has 'adam'"),
        ("optimizer.dense.lr=0.001", "optimizer.dense.lr = 0.001: the run has 0.003"),
        ("model.embedding_dim=32", "model.embedding_dim = 32: the run has 16"),
        ("model.interest={kind='pooled'}", "model.interest.kind = 'pooled': the run has 'cdp'"),
        ("data.synthetic.num_users=9", "data.synthetic.num_users = 9: the run has"),
        ("data.exclude_features=['hour']", 'data.exclude_features = ["hour"]: the run has []'),
        (
            "data.vocabulary.item.min_count=3",
            "num_oov_rows = 1, dropout = 0.0, hash_seed = 0}: the run does not set it",
        ),
        ("sharding.communication.forward=bf16", "forward = 'bf16': the run has 'fp32'"),
        ("run.fork_from=other", "run.fork_from = 'other': the run does not set it"),
    ],
)
def test_what_makes_it_another_run_is_refused_with_both_values(setting: str, said: str) -> None:
    begin()
    message = refusal(*RESUME, setting)
    assert said in message
    assert "run.fork_from=mine run.dir=NEW" in message


def test_all_differences_are_named_at_once_and_what_may_change_is_not_among_them() -> None:
    begin()
    message = refusal(*RESUME, "seed=8", "trainer.max_steps=9", "data.validation_fraction=0.4")
    assert message.count(": the run ") == 2
    assert all(key in message for key in changeable(ExperimentConfig))


def test_an_edited_configuration_is_compared_with_what_was_trained() -> None:
    begin()
    text = Path("mine", "config.toml").read_text()
    write_whole(Path("mine", "config.toml"), text.replace("seed = 7", "seed = 8"))
    assert "seed = 8: the run has 7" in refusal(*RESUME)


def test_a_restarted_attempt_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    begin()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert load_training(LINE).seed == 7
    assert "seed = 8: the run has 7" in refusal(*LINE[:2], "run.dir=mine", "seed=8")


def test_settings_that_no_command_line_made_are_compared_before_the_checkpoint_is_loaded() -> None:
    begin()
    other = load_config(ExperimentConfig, [*LINE[:2], "seed=8"])
    with pytest.raises(ConfigError, match="seed = 8: the run has 7"):
        check_unchanged(other, Path("mine"))


def test_the_end_may_not_move_where_learning_rates_fall_towards_it() -> None:
    begin("optimizer.dense.schedule.kind=cosine", "trainer.max_steps=20")
    message = refusal(*RESUME, "trainer.max_steps=40")
    assert "trainer.max_steps = 40: the run has 20, and its learning rates end there" in message


def test_the_end_may_move_where_the_decay_has_its_own() -> None:
    begin("optimizer.dense.schedule={kind='cosine',decay_steps=30}", "trainer.max_steps=20")
    assert load_training([*RESUME, "trainer.max_steps=40"]).trainer.max_steps == 40


def test_a_plan_stays_with_its_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    begin("sharding.plan=plan.json", "sharding.hardware=a10", "sharding.sharding_group_size=1")
    assert load_training(RESUME).sharding.plan == Path("plan.json")
    assert load_training(RESUME).sharding.sharding_group_size == 1
    assert load_training([*RESUME, "sharding.sharding_group_size=1"]).sharding.plan is None
    chosen = load_training([*RESUME, "sharding.strategy=row_wise"])
    assert (chosen.sharding.plan, chosen.sharding.strategy) == (None, "row_wise")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert load_training(RESUME).sharding.plan is None
    assert load_training(RESUME).sharding.hardware is None
    assert load_training(RESUME).sharding.sharding_group_size is None


def test_a_job_script_begins_where_there_is_no_run_yet() -> None:
    line = [*LINE, "run.resume=true"]
    assert without_run(load_training(line)) == without_run(load_training(LINE))


def test_a_resume_must_name_its_run() -> None:
    assert "which run? Name it with run.dir=DIR" in refusal("run.resume=true")


def test_a_run_without_its_configuration_has_that_of_its_checkpoint() -> None:
    begun = begin()
    Path("mine", "config.toml").unlink()
    assert without_run(load_training(RESUME)) == without_run(begun)


def test_a_checkpoint_whose_records_are_damaged_is_passed_over() -> None:
    begun = begin()
    write_whole(Path("mine/checkpoints/step-00000008/checkpoint.json"), "{")
    assert without_run(load_training(RESUME)) == without_run(begun)
    for checkpoint in saved_checkpoints(Path("mine/checkpoints")):
        write_whole(checkpoint / "checkpoint.json", "{")
    with pytest.raises(CheckpointError, match=r"step-00000008/checkpoint\.json: is damaged"):
        load_training(RESUME)


def test_a_fork_has_the_settings_of_its_parent_and_what_is_given_on_top() -> None:
    begun = begin("trainer.max_steps=20")
    fork = load_training(["run.fork_from=mine", "run.dir=fork", "seed=8"])
    assert (fork.run.dir, fork.run.fork_from, fork.run.resume) == (
        Path("fork"),
        Path("mine"),
        False,
    )
    assert fork.seed == 8
    assert fork.model_dump(exclude={"run", "seed"}) == begun.model_dump(exclude={"run", "seed"})


def test_the_starter_of_a_copied_dataset_leads_no_run_back_to_its_original() -> None:
    begin()
    Path("copy").mkdir()
    Path("copy", "schema.toml").touch()
    Path("copy", "starter.toml").write_text('[data]\ndir = "data/quickstart"\n')
    for line in (RESUME, ["run.fork_from=mine", "run.dir=fork"]):
        said = refusal(*line, "copy/starter.toml")
        assert "names data/quickstart, but lies in a dataset that was copied or moved" in said


def test_a_fork_is_resumed_by_the_line_that_began_it_and_records_its_parent() -> None:
    begin()
    line = ["run.fork_from=mine", "run.dir=fork", "seed=8", "run.resume=true"]
    fork = load_training(line)
    begun = Path("fork", "checkpoints", "step-00000001")
    write_record(begun, fork)
    for folder in (begun, Path("fork")):
        write_whole(folder / "config.toml", dump_toml(fork))
    assert load_training(line) == fork
    alone = load_training(["run.dir=fork", "run.resume=true"])
    assert alone == fork == load_toml(ExperimentConfig, Path("fork", "config.toml"))


DAY, NEXT_DAY = "2025-06-01", "2025-06-02"
REQUESTS = {"train": 900, "test": 100, DAY: 100, NEXT_DAY: 100}


def periods(*train_on: str, test_on: str) -> list[str]:
    return [f"data.train_on={json.dumps(train_on)}", f'data.test_on="{test_on}"']


def warnings_of(parent: ExperimentConfig, *settings: str) -> list[str]:
    return [*flattered(parent, load_training([*LINE, *settings]), REQUESTS)]


def test_a_fork_that_holds_out_what_its_parent_trained_on_is_told_so() -> None:
    parent = begin()
    (warning,) = warnings_of(parent, "data.validation_fraction=0.4")
    assert "data.validation_fraction = 0.4" in warning and "0.1 of ['train'] only" in warning
    assert warnings_of(parent, "data.validation_fraction=0.05") == []


@pytest.mark.parametrize(
    ("begun", "forked", "is_flattered"),
    [
        (["train"], ["train", "test"], False),  # holds out 100 of 1000: test, and nothing else
        (["test"], ["train", "test"], True),  # the same 100, of which 90 were trained on
        (["train", "test"], ["train"], True),
        (["train"], ["test"], False),
    ],
)
def test_what_a_fork_holds_out_is_compared_request_by_request(
    begun: list[str], forked: list[str], is_flattered: bool
) -> None:
    """Fails where shares are compared: of other periods they say nothing."""
    parent = begin(*periods(*begun, test_on=DAY))
    found = warnings_of(parent, *periods(*forked, test_on=DAY))
    assert [("is validated here" in warning) for warning in found] == [True] * is_flattered


def test_a_larger_share_of_later_days_flatters_nobody() -> None:
    parent = begin("data.validation_fraction=0")
    later = periods(DAY, test_on=NEXT_DAY)
    assert warnings_of(parent, *later, "data.validation_fraction=0.5") == []


@pytest.mark.parametrize("is_fork", [False, True])
def test_a_fork_that_is_measured_on_what_its_parent_trained_on_is_told_so(is_fork: bool) -> None:
    """The parent is trained on it, or is a fork of a run that was."""
    parent = begin(*periods(DAY if is_fork else "test", test_on=NEXT_DAY))
    run = parent.run.model_copy(update={"fork_from": Path("former") if is_fork else None})
    parent = parent.model_copy(update={"run": run})
    everything = "data.validation_fraction=0"
    (warning,) = warnings_of(parent, *periods("train", test_on="test"), everything)
    assert warning.startswith("WARNING: data.test_on = 'test'")
    assert warnings_of(parent, *periods(DAY, test_on=NEXT_DAY), everything) == []


def test_a_run_that_is_measured_on_what_it_was_trained_on_is_told_so() -> None:
    own = begin(*periods("test", test_on=DAY))
    for period, is_known in (("test", True), (DAY, False), (NEXT_DAY, False)):
        measured = own.model_copy(update={"data": own.data.model_copy(update={"test_on": period})})
        found = [*measured_on_training(own, measured, REQUESTS, who="this run")]
        assert [("this run was trained up to 'test'" in warning) for warning in found] == (
            [True] * is_known
        )


def test_a_parent_of_days_that_are_not_here_is_no_reason_for_a_warning() -> None:
    parent = begin(*periods("2025-05-31", test_on=DAY))
    assert warnings_of(parent, *periods(DAY, test_on=NEXT_DAY)) == []


def test_there_must_be_a_run_to_fork() -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        load_training(["run.fork_from=nowhere", "run.dir=fork"])
