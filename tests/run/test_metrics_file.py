"""A resumed training writes every number once."""

import json
from pathlib import Path

from cdp_torchrec.run.metrics_file import cut_metrics


def line(kind: str, step: int) -> str:
    return json.dumps({"kind": kind, "step": step, "loss": 0.5}) + "\n"


def test_what_is_written_again_is_cut_with_the_test_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = line("train", 1) + line("train", 2) + line("validation", 2)
    path.write_text(kept + line("test", 2) + line("train", 3) + line("train", 4)[:-9])
    cut_metrics(path, 2)
    assert path.read_text() == kept


def test_a_torn_line_that_reads_is_torn_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line("train", 1) + line("train", 2).rstrip("\n"))
    cut_metrics(path, 2)
    assert path.read_text() == line("train", 1)


def test_nothing_is_cut_where_nothing_was_written(tmp_path: Path) -> None:
    cut_metrics(tmp_path / "metrics.jsonl", 0)
    assert list(tmp_path.iterdir()) == []
