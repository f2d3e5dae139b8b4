"""A compiled model leaves neither files nor memory behind."""

import gc
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest

from cdp_torchrec.serving import compiled
from cdp_torchrec.serving.artifact import RANKER
from cdp_torchrec.serving.compiled import load_compiled, remove_leftovers


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where packages are unpacked."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def num_mapped(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(folder))


def test_nothing_stays_on_the_disk_and_old_libraries_are_unmapped(
    artifact: Path, folder: Path
) -> None:
    mapped = []
    for _ in range(4):
        thread = threading.Thread(
            target=load_compiled, args=(artifact / RANKER,), kwargs={"num_runners": 1}
        )
        thread.start()
        thread.join()
        gc.collect()
        while any(t.name == "unloader" for t in threading.enumerate()):
            time.sleep(0.01)
        mapped.append(num_mapped(folder))
        assert list(folder.iterdir()) == []
    assert mapped[-1] == mapped[1] > 0


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, used, young, other = (
        folder / n for n in ("cdp_ranker-a", "cdp_ranker-b", "cdp_ranker-c", "x")
    )
    for path in (left, used, young, other):
        path.mkdir()
        (path / "lock").write_text("")
    for path in (left, used, other):
        os.utime(path, (0, 0))
    with (used / "lock").open("w") as lock:
        compiled.fcntl.flock(lock, compiled.fcntl.LOCK_EX)
        os.utime(used, (0, 0))
        remove_leftovers()
    assert sorted(path.name for path in folder.iterdir()) == ["cdp_ranker-b", "cdp_ranker-c", "x"]
