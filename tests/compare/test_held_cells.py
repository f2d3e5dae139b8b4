"""A cell belongs to one process from its begin until its result is written."""

import subprocess
import sys
from unittest import mock

import pytest

from cdp_torchrec.compare import run
from tests.compare.conftest import CPU, MakeTable


def test_a_cell_is_held_until_its_result_is_written(
    make_table: MakeTable, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = make_table().tuning_cells("tiny", "none")[0]
    lock = cell.directory.with_name("seed-0.lock")
    other = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    refused: list[int] = []

    def measured(*_: object, **__: object) -> None:
        assert lock.is_file()
        line = [sys.executable, "-c", other, str(lock)]
        refused.append(subprocess.run(line, check=False, capture_output=True).returncode)

    monkeypatch.setattr(run, "train_experiment", mock.Mock())
    monkeypatch.setattr(run, "measure_cost", measured)
    assert run._attempt(cell, CPU, num_bootstrap=50) is None
    assert refused == [1] and not lock.exists()
