"""A compiled model leaves neither files nor memory behind."""

import gc
import tempfile
import threading
import time
from pathlib import Path

import pytest

from cdp_torchrec.serving.artifact import RANKER
from cdp_torchrec.serving.compiled import load_compiled


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
