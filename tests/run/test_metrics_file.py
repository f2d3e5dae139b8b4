"""A resumed training writes every number once."""

import json
from dataclasses import replace
from pathlib import Path

from cdp_torchrec.run.metrics_file import cut_metrics
from cdp_torchrec.run.records import BEGINNING, Progress

STEP_2 = Progress(step=2, position=32)


def line(kind: str, step: int) -> str:
    return json.dumps({"kind": kind, "step": step, "loss": 0.5}) + "\n"


def test_what_is_written_again_is_cut_with_the_test_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = line("train", 1) + line("train", 2) + line("validation", 2)
    path.write_text(kept + line("test", 2) + line("train", 3) + line("train", 4)[:-9])
    cut_metrics(path, STEP_2)
    assert path.read_text() == kept


def test_a_validation_that_is_due_again_is_cut_and_earlier_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = line("validation", 1) + line("train", 2)
    path.write_text(kept + line("validation", 2))
    cut_metrics(path, replace(STEP_2, validation_is_due=True))
    assert path.read_text() == kept


def test_a_torn_line_that_reads_is_torn_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line("train", 1) + line("train", 2).rstrip("\n"))
    cut_metrics(path, STEP_2)
    assert path.read_text() == line("train", 1)


def test_nothing_is_cut_where_nothing_was_written(tmp_path: Path) -> None:
    cut_metrics(tmp_path / "metrics.jsonl", BEGINNING)
    assert list(tmp_path.iterdir()) == []
