"""A compiled model leaves neither files nor memory behind."""

import gc
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from cdp_torchrec.serving.artifact import RANKER
from cdp_torchrec.serving.compiled import load_compiled


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where packages are unpacked."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def num_mapped(package: Path) -> int:
    """Mappings of its libraries, wherever it was unpacked."""
    maps = Path("/proc/self/maps").read_text()
    with zipfile.ZipFile(package) as archive:
        return sum(maps.count(Path(n).name) for n in archive.namelist() if n.endswith(".so"))


def test_nothing_stays_on_the_disk_and_old_libraries_are_unmapped(
    artifact: Path, folder: Path
) -> None:
    loaded, mapped = [], []

    def load_and_drop() -> None:
        compiled = load_compiled(artifact / RANKER, num_runners=1)
        loaded.append(num_mapped(artifact / RANKER))
        del compiled

    for _ in range(4):
        thread = threading.Thread(target=load_and_drop)
        thread.start()
        thread.join()
        gc.collect()
        while any(t.name == "unloader" for t in threading.enumerate()):
            time.sleep(0.01)
        mapped.append(num_mapped(artifact / RANKER))
        assert list(folder.iterdir()) == []
    assert min(loaded) > 0
    assert mapped[-1] == mapped[1]
    assert loaded[-1] == loaded[1]
