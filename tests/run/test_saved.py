"""Checkpoints are found, and whatever is none says what it is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cdp_torchrec.data.identity import DatasetDigest, VocabularyDigest
from cdp_torchrec.run.records import (
    BestRecord,
    CheckpointError,
    CheckpointRecord,
    Progress,
    read_record,
)
from cdp_torchrec.run.saved import find_checkpoint
from cdp_torchrec.whole_file import write_whole

RECORD = CheckpointRecord(
    format_version=2,
    release="0.1.0",
    progress=Progress(step=3, position=768, validations_without_gain=1),
    dataset_digest=DatasetDigest(
        vocabularies={"item": VocabularyDigest(num_ids=3, digest="abc")},
        features={"item_id": "id of each candidate"},
        history={"item": "item"},
    ),
    world_size=2,
)


def make_run(run: Path, *steps: int, best: int | None = None) -> Path:
    """The files that make a directory a run."""
    write_whole(run / "config.toml", "")
    write_whole(run / "metrics.jsonl", "")
    for step in steps:
        checkpoint = run / "checkpoints" / f"step-{step:08d}"
        write_whole(checkpoint / "checkpoint.json", RECORD.model_dump_json())
        write_whole(checkpoint / "config.toml", "")
        write_whole(checkpoint / ".metadata", "")
    if best is not None:
        mark = BestRecord(checkpoint=f"step-{best:08d}", metric="gauc", value=0.7)
        write_whole(run / "checkpoints" / "best.json", mark.model_dump_json())
    return run


def test_the_best_checkpoint_is_taken_else_the_newest_or_the_one_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3, 6)
    assert find_checkpoint(run).name == "step-00000006"
    assert find_checkpoint(run / "checkpoints" / "step-00000003").name == "step-00000003"
    assert find_checkpoint(make_run(run, best=3)).name == "step-00000003"


def artifact(folder: Path) -> Path:
    write_whole(folder / "artifact.json", "{}")
    return folder


def dataset(folder: Path) -> Path:
    write_whole(folder / "schema.toml", "")
    return folder


def unfinished(folder: Path) -> Path:
    return make_run(folder / "unfinished")


def incomplete(folder: Path) -> Path:
    run = make_run(folder / "run", 3)
    (run / "checkpoints" / "step-00000003" / ".metadata").unlink()
    return run


def lost(folder: Path) -> Path:
    return make_run(folder / "run", 3, best=6)


def misspelt(folder: Path) -> Path:
    make_run(folder / "trivago-cdp", 3)
    return folder / "trivago-pdc"


def parent(folder: Path) -> Path:
    make_run(folder / "one", 3)
    return make_run(folder / "two", 3).parent


def inside(folder: Path) -> Path:
    return make_run(folder / "run", 3) / "checkpoints"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (artifact, "an exported artifact, neither a run directory nor a checkpoint"),
        (dataset, "a dataset directory, neither a run directory nor a checkpoint"),
        (unfinished, "an unfinished run without a checkpoint: .* go on with run.resume=true"),
        (incomplete, "step-00000003: incomplete, without .metadata"),
        (lost, "best.json: names step-00000006, which is not there; name one of step-00000003"),
        (misspelt, "trivago-pdc: no such directory; runs in .*: trivago-cdp"),
        (parent, "neither a run directory nor a checkpoint; runs in .*: one, two"),
        (inside, "the checkpoints of a run; name the run, .*/run, or one of them"),
    ],
)
def test_what_is_no_run_says_what_it_is(
    tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        find_checkpoint(make(tmp_path))


def test_a_record_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    write_whole(path, RECORD.model_dump_json())
    assert read_record(CheckpointRecord, path) == RECORD


def test_a_record_of_before_the_release_was_recorded_reads(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    write_whole(path, RECORD.model_dump_json(exclude={"release"}))
    assert read_record(CheckpointRecord, path).writer == "an earlier cdp_torchrec"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"world_size": 0}, "world_size = 0: must be an integer > 0"),
        ({"progress": {"step": -1, "position": 5}}, "progress.step = -1: must be an integer >= 0"),
        ({"progress": {"step": 1}}, "progress.position: required key is missing"),
        ({"dataset_digest": 7}, "dataset_digest = 7: must be a table"),
        ({"foo": 1}, "foo: unknown key"),
        (
            {"format_version": 1, "release": "0.9.1"},
            "has format 1, was written by cdp_torchrec 0.9.1; this release reads 2: use the "
            "release that wrote it, or train again",
        ),
    ],
)
def test_a_wrong_record_names_file_key_value_and_what_is_allowed(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = tmp_path / "checkpoint.json"
    write_whole(path, json.dumps(RECORD.model_dump(mode="json") | change))
    with pytest.raises(CheckpointError) as raised:
        read_record(CheckpointRecord, path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "best.json"
    write_whole(path, text)
    with pytest.raises(CheckpointError, match=r"best\.json: is damaged"):
        read_record(BestRecord, path)
