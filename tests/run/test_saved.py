"""Checkpoints are found, and whatever is none says what it is."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.identity import DatasetDigest, VocabularyDigest
from cdp_torchrec.run.checksums import record_text, verify
from cdp_torchrec.run.records import (
    CheckpointError,
    CheckpointRecord,
    DamagedCheckpointError,
    Progress,
    Validation,
    read_record,
)
from cdp_torchrec.run.saved import (
    best_checkpoint,
    check_run_directory,
    find_checkpoint,
    is_dataset,
)
from cdp_torchrec.whole_file import write_whole

FILES = {"config.toml": "seed = 1\n", ".metadata": "index", "__0_0.distcp": "tensors"}
RECORD = CheckpointRecord(
    format_version=2,
    release="0.1.0",
    progress=Progress(step=3, position=768, validations_without_gain=1),
    validation=Validation(metric="gauc", value=0.25),
    dataset_digest=DatasetDigest(
        vocabularies={"item": VocabularyDigest(num_ids=3, digest="abc")},
        features={"item_id": "id of each candidate"},
        history={"item": "item"},
    ),
    world_size=2,
    files={name: record_text(text) for name, text in FILES.items()},
)


def make_run(run: Path, gauc: dict[int, float | None], metric: str = "gauc") -> Path:
    """The files that make a directory a run, with checkpoints at these steps."""
    write_whole(run / "config.toml", "")
    write_whole(run / "metrics.jsonl", "")
    for step, value in gauc.items():
        checkpoint = run / "checkpoints" / f"step-{step:08d}"
        for name, text in FILES.items():
            write_whole(checkpoint / name, text)
        measured = None if value is None else Validation(metric=metric, value=value)
        record = RECORD.model_copy(update={"validation": measured})
        write_whole(checkpoint / "checkpoint.json", record.sealed())
    return run


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("gauc", {3: 0.6, 6: 0.7, 9: 0.65}, 6),
        ("gauc", {3: 0.6, 6: 0.6, 9: None}, 3),
        ("log_loss", {3: 0.6, 6: 0.7, 9: 0.65}, 3),
        ("gauc", {3: None, 6: None}, 6),
    ],
)
def test_the_best_checkpoint_by_its_own_record_is_taken_else_the_newest(
    tmp_path: Path, metric: str, values: dict[int, float | None], best: int
) -> None:
    run = make_run(tmp_path / "run", values, metric)
    assert find_checkpoint(run).name == f"step-{best:08d}"
    assert find_checkpoint(run / "checkpoints" / "step-00000003").name == "step-00000003"


def test_where_nobody_may_look_nobody_says_that_there_are_no_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", {3: 0.6})

    def refuse(path: Path | str) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    for call in ("listdir", "scandir"):
        monkeypatch.setattr(os, call, refuse)
    with pytest.raises(
        CheckpointError, match=f"^{run}/checkpoints: cannot be read: Permission denied$"
    ):
        find_checkpoint(run)
    with pytest.raises(CheckpointError, match=f"^{run}: cannot be read: Permission denied$"):
        check_run_directory(run, resume=True)


def test_checkpoints_that_two_metrics_measured_have_no_best_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {3: 0.6})
    make_run(run, {6: 0.5}, "log_loss")
    with pytest.raises(
        CheckpointError, match=r"step-00000003 was chosen by gauc, step-00000006 by"
    ):
        best_checkpoint(run / "checkpoints")


def artifact(folder: Path) -> Path:
    write_whole(folder / "artifact.json", "{}")
    return folder


def dataset(folder: Path) -> Path:
    write_whole(folder / "schema.toml", "")
    return folder


def unfinished(folder: Path) -> Path:
    return make_run(folder / "unfinished", {})


def finished(folder: Path) -> Path:
    run = make_run(folder / "finished", {})
    write_whole(run / "metrics.jsonl", json.dumps({"kind": "test", "step": 3}) + "\n")
    return run


def incomplete(folder: Path) -> Path:
    run = make_run(folder / "run", {3: 0.6})
    (run / "checkpoints" / "step-00000003" / ".metadata").unlink()
    return run


def unrecorded(folder: Path) -> Path:
    checkpoint = make_run(folder / "run", {3: 0.6}) / "checkpoints" / "step-00000003"
    (checkpoint / "checkpoint.json").unlink()
    return checkpoint


def edited(folder: Path) -> Path:
    run = make_run(folder / "run", {3: 0.6})
    (run / "checkpoints" / "step-00000003" / "config.toml").write_text("seed = 2\n")
    return run


def misspelt(folder: Path) -> Path:
    make_run(folder / "trivago-cdp", {3: 0.6})
    return folder / "trivago-pdc"


def parent(folder: Path) -> Path:
    make_run(folder / "one", {3: 0.6})
    make_run(folder / ".half.partial-1a2b", {3: 0.6})
    return make_run(folder / "two", {3: 0.6}).parent


def inside(folder: Path) -> Path:
    return make_run(folder / "run", {3: 0.6}) / "checkpoints"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (artifact, "an exported artifact, neither a run directory nor a checkpoint"),
        (dataset, "a dataset directory, neither a run directory nor a checkpoint"),
        (unfinished, "an unfinished run without a checkpoint: .* go on with run.resume=true"),
        (finished, "a finished run whose checkpoints are gone"),
        (incomplete, "step-00000003/.metadata: is missing"),
        (unrecorded, "step-00000003: a checkpoint without its checkpoint.json"),
        (edited, "step-00000003/config.toml: is damaged: its checksum does not match"),
        (misspelt, "trivago-pdc: no such directory; runs in .*: trivago-cdp"),
        (parent, "neither a run directory nor a checkpoint; runs in [^:]*: one, two"),
        (inside, "the checkpoints of a run; name the run, .*/run, or one of them"),
    ],
)
def test_what_is_no_run_says_what_it_is(
    tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        find_checkpoint(make(tmp_path))


def test_an_artifact_is_no_dataset_though_it_has_the_schema_of_one(tmp_path: Path) -> None:
    assert is_dataset(dataset(tmp_path))
    assert not is_dataset(artifact(dataset(tmp_path)))


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_without_a_checkpoint_begins_again(tmp_path: Path, resume: bool) -> None:
    check_run_directory(make_run(tmp_path / "run", {}), resume=resume)


def test_a_run_with_results_is_continued_only_on_demand(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {3: 0.6})
    with pytest.raises(ConfigError, match=r"holds another run: continue it with run\.resume=true"):
        check_run_directory(run, resume=False)
    check_run_directory(run, resume=True)
    write_whole(run / "distillation.json", "{}")
    with pytest.raises(ConfigError, match=r"a distilled student, .*run\.fork_from=.*run$"):
        check_run_directory(run, resume=True)
    emptied = finished(tmp_path)
    with pytest.raises(ConfigError, match="holds another run"):
        check_run_directory(emptied, resume=False)
    with pytest.raises(CheckpointError, match="checkpoints is gone or empty"):
        check_run_directory(emptied, resume=True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_text("tensorS"), "its checksum does not match"),
        (lambda path: path.write_text("tens"), "it has 4 bytes instead of 7"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: (path.unlink(), path.mkdir()), "is damaged|cannot be read"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    checkpoint = make_run(tmp_path / "run", {3: 0.6}) / "checkpoints" / "step-00000003"
    verify(checkpoint, RECORD, RECORD.files)
    damage(checkpoint / "__0_0.distcp")
    with pytest.raises(DamagedCheckpointError, match=rf"__0_0\.distcp: .*({said})"):
        verify(checkpoint, RECORD, RECORD.files)


def test_a_record_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    write_whole(path, RECORD.sealed())
    read = read_record(path)
    assert read.model_copy(update={"checksum": ""}) == RECORD


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"world_size": 0}, "world_size = 0: must be an integer > 0"),
        ({"progress": {"step": -1, "position": 5}}, "progress.step = -1: must be an integer >= 0"),
        ({"progress": {"step": 1}}, "progress.position: required key is missing"),
        ({"dataset_digest": 7}, "dataset_digest = 7: must be a table"),
        ({"foo": 1}, "foo: unknown key"),
        ({"progress": {"step": 1, "position": 5}}, "is damaged: its checksum does not match"),
        (
            {"format_version": 9, "release": "0.9.1"},
            "has format 9, was written by cdp_torchrec 0.9.1; this release reads 2: use the "
            "release that wrote it, or train again",
        ),
        ({"format_version": 1, "release": None}, "has format 1; this release reads 2: use the"),
    ],
)
def test_a_wrong_record_names_file_key_value_and_what_is_allowed(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = tmp_path / "checkpoint.json"
    write_whole(path, json.dumps(json.loads(RECORD.sealed()) | change))
    with pytest.raises(CheckpointError) as raised:
        read_record(path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


def test_a_change_of_any_character_of_a_record_is_found(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    text = RECORD.sealed()
    for place, character in enumerate(text):
        if character.isalnum():
            path.write_text(text[:place] + chr(ord(character) ^ 1) + text[place + 1 :])
            with pytest.raises(CheckpointError):
                read_record(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "checkpoint.json"
    write_whole(path, text)
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint\.json: is damaged"):
        read_record(path)
