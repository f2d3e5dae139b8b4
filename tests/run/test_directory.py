"""Each run has a directory of its own, and each attempt of a job the same."""

import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from cdp_torchrec.config import ConfigError
from cdp_torchrec.run.config import RunConfig
from cdp_torchrec.run.directory import open_run_directory, write_run_files
from cdp_torchrec.run.lock import RunInUseError
from cdp_torchrec.run.saved import check_run_directory
from cdp_torchrec.whole_file import write_whole

pytestmark = pytest.mark.usefixtures("alone", "nowhere")


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process, without a launcher."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def begin(config: RunConfig) -> Path:
    """A run up to its first checkpoint."""
    with open_run_directory(config) as run_dir:
        write_whole(run_dir / "metrics.jsonl", "{}\n")
        (run_dir / "checkpoints" / "step-00000003").mkdir(parents=True)
    return run_dir


def opened(config: RunConfig) -> Path:
    with open_run_directory(config) as run_dir:
        return run_dir


def test_runs_that_start_in_the_same_second_have_directories_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "strftime", lambda pattern: "20260801-120000")
    found = {begin(RunConfig()) for _ in range(20)}
    assert len(found) == 20
    assert all(path.is_dir() and path.match("runs/20260801-120000-??????") for path in found)


def test_the_launchers_id_is_the_name_and_a_restarted_attempt_finds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "train-x1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert begin(RunConfig()) == Path("runs/train-x1")
    with pytest.raises(ConfigError, match="holds another run"):
        opened(RunConfig())
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert opened(RunConfig()) == Path("runs/train-x1")


def test_a_node_that_comes_back_knows_the_run_by_the_name_of_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunConfig(dir=Path("mine"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")  # of the new launcher on this node
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "train-x1")
    write_run_files(begin(run), run, plan_json="{}")
    assert opened(run) == Path("mine")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "train-x2")
    with pytest.raises(ConfigError, match="holds another run"):
        opened(run)


def test_a_restart_does_not_undo_the_refusal_of_what_another_job_has_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first attempt was told to choose another directory."""
    run = RunConfig(dir=Path("mine"))
    write_run_files(begin(run), run, plan_json="{}")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "train-x2")
    for attempt in range(2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        with pytest.raises(ConfigError, match="holds another run"):
            opened(run)
    assert opened(RunConfig(dir=Path("mine"), resume=True)) == Path("mine")


def test_a_restarted_attempt_of_a_job_without_an_id_finds_its_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = iter(["20260801-120000", "20260801-120005"])
    monkeypatch.setattr(time, "strftime", lambda pattern: next(names))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    begin(RunConfig())
    second = begin(RunConfig())  # a later job of the same launcher
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert opened(RunConfig()) == second


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "")
    with pytest.raises(ConfigError) as raised:
        opened(RunConfig(dir=tmp_path / "file" / "run"))
    assert str(raised.value) == (
        f"run.dir = '{tmp_path}/file/run': {tmp_path}/file is not a writable directory"
    )


@pytest.mark.parametrize("folder", ["checkpoints", "tensorboard"])
def test_a_folder_of_a_run_that_cannot_be_written_is_said_before_the_training(
    tmp_path: Path, folder: str
) -> None:
    write_whole(tmp_path / "run" / folder, "")
    with pytest.raises(ConfigError, match=f"/run/{folder} is not a writable directory$"):
        opened(RunConfig(dir=tmp_path / "run"))


def test_where_all_runs_lie_on_what_is_not_there_none_waits_for_a_name_of_its_own(
    tmp_path: Path,
) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "not mounted")
    with pytest.raises(ConfigError, match=r"^run\.dir = 'runs/.*/runs is a link to nothing$"):
        opened(RunConfig())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("place", ["/proc/runs", "/proc"])
def test_a_place_that_exists_and_cannot_hold_files_is_one_line(place: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_run_directory(Path(place), resume=False)
    assert str(raised.value).startswith(f"run.dir = '{place}': /proc ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_ended_before_its_first_checkpoint_begins_again(
    tmp_path: Path, resume: bool
) -> None:
    run_dir = begin(RunConfig(dir=tmp_path / "run"))
    (run_dir / "checkpoints" / "step-00000003").rmdir()
    write_whole(run_dir / "tensorboard" / "events", "")
    assert opened(RunConfig(dir=run_dir, resume=resume)) == run_dir
    assert sorted(path.name for path in run_dir.iterdir()) == ["checkpoints", "lock"]


def test_a_directory_in_use_names_who_uses_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    holding = """
import sys, time
from pathlib import Path
from cdp_torchrec.run.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
    write_whole(run_dir / "lock", "process 1 on the machine of an earlier start\n")
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(run_dir)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        who = f"is in use by process {holder.pid} on {platform.node()}: wait for its end"
        with pytest.raises(RunInUseError, match=who):
            opened(RunConfig(dir=run_dir))
        (run_dir / "checkpoints" / "step-00000003").mkdir(parents=True)
        with pytest.raises(RunInUseError, match=who):
            opened(RunConfig(dir=run_dir))
        holder.kill()
    with pytest.raises(ConfigError, match="holds another run"):
        opened(RunConfig(dir=run_dir))
    assert opened(RunConfig(dir=run_dir, resume=True)) == run_dir


def test_a_resume_begins_where_no_run_began(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert opened(RunConfig(dir=run_dir, resume=True)) == run_dir


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("schema.toml", "a dataset directory"),
        ("artifact.json", "an exported artifact"),
        ("checkpoint.json", "a checkpoint; name a run"),
        ("step-00000004/checkpoint.json", "neither a run directory nor a checkpoint"),
    ],
)
def test_no_run_begins_in_what_is_something_else(tmp_path: Path, inside: str, said: str) -> None:
    write_whole(tmp_path / "it" / inside, "")
    with pytest.raises(ConfigError, match=rf"run\.dir = '.*/it': {said}"):
        check_run_directory(tmp_path / "it", resume=True)


@pytest.mark.parametrize("there", [False, True])
def test_a_training_that_is_refused_before_it_begins_leaves_nothing(
    tmp_path: Path, there: bool
) -> None:
    run_dir = tmp_path / "run"
    if there:
        run_dir.mkdir()
    with pytest.raises(ConfigError), open_run_directory(RunConfig(dir=run_dir)):
        raise ConfigError("the checkpoint to fork from does not fit")
    assert [*tmp_path.rglob("*")] == ([run_dir] if there else [])
