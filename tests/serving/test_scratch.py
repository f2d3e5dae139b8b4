"""Scratch directories do not outlive the process that made them for long."""

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from cdp_torchrec.serving.scratch import Scratch, remove_leftovers


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where they are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_scratch_directory_is_private_and_vanishes(folder: Path) -> None:
    with Scratch() as scratch:
        assert scratch.path.parent == folder
        assert scratch.path.stat().st_mode & 0o077 == 0
        (scratch.path / "file").touch()
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(
    folder: Path,
) -> None:
    left, used, young, other = (
        folder / n for n in ("cdp_scratch-a", "cdp_scratch-b", "cdp_scratch-c", "x")
    )
    for path in (left, used, young, other):
        path.mkdir()
        (path / "lock").write_text("")
    for path in (left, used, other):
        os.utime(path, (0, 0))
    with (used / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(used, (0, 0))
        remove_leftovers()
    assert sorted(path.name for path in folder.iterdir()) == ["cdp_scratch-b", "cdp_scratch-c", "x"]
