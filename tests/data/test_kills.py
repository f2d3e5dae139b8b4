"""SIGKILL at random moments of a preparation and of an append: nothing half-written, and again.

CDP_WHOLE_MATRIX=1 kills 20 of each.
"""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cdp_torchrec.data.manifest import find_damage
from cdp_torchrec.data.prepare.append import append_day
from cdp_torchrec.data.prepare.staging import build_dataset
from cdp_torchrec.data.prepare.workplace import changing
from tests.conftest import MakeOnce
from tests.data.appended_log import DAYS, SPEC_OF_DAYS, fill
from tests.whole_matrix import WHOLE_MATRIX

pytestmark = pytest.mark.slow
_KILLS = 20 if WHOLE_MATRIX else 3
# Started once with all modules; each process that is killed is a fork of it, and nothing else's.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["cdp_torchrec.data.prepare.append"])


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> Path:
    """Do not write into it."""
    return make_once("appended", fill)


def _killed(work: Callable[..., Any], arguments: tuple[Any, ...], delay: float | None) -> float:
    """Do it in a process that gets SIGKILL after a delay, if any; the seconds that it took."""
    process = _PROCESSES.Process(target=work, args=arguments)
    start = time.monotonic()
    process.start()
    process.join(delay)
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return time.monotonic() - start


def _contents(folder: Path) -> dict[Path, bytes]:
    """All but what has times or paths of its own."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "starter.toml")
    }


def test_a_killed_preparation_leaves_no_dataset_and_is_done_again(
    made: Path, tmp_path: Path
) -> None:
    random, expected = Random(0), _contents(made / "before")
    whole = (made / "base", tmp_path / "first", SPEC_OF_DAYS)
    seconds = _killed(build_dataset, whole, None)
    shutil.rmtree(tmp_path / "first")
    for _ in range(_KILLS):
        arguments = (made / "base", tmp_path / "data", SPEC_OF_DAYS)
        _killed(build_dataset, arguments, random.uniform(0, seconds))
        if not (tmp_path / "data").exists():
            build_dataset(*arguments)
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
        assert _contents(tmp_path / "data") == expected
        assert find_damage(tmp_path / "data", active=False) == {}
        shutil.rmtree(tmp_path / "data")


def test_a_killed_append_leaves_the_dataset_as_it_was_and_is_done_again(
    made: Path, tmp_path: Path
) -> None:
    random = Random(1)
    before, after = _contents(made / "before"), _contents(made / "grown" / "days" / DAYS[0])
    dataset, day = tmp_path / "data", tmp_path / "data" / "days" / DAYS[0]
    shutil.copytree(made / "before", dataset)
    seconds = _killed(append_day, (dataset, made / "day-1"), None)
    for _ in range(_KILLS):
        shutil.rmtree(dataset)
        shutil.copytree(made / "before", dataset)
        _killed(append_day, (dataset, made / "day-1"), random.uniform(0, seconds))
        assert find_damage(dataset, active=False) == {}
        if not day.exists():
            append_day(dataset, made / "day-1")
        with changing(dataset):  # the next change removes what is left of one killed at its end
            pass
        assert [path.name for path in day.parent.iterdir()] == [DAYS[0]]
        assert _contents(day) == after
        shutil.rmtree(dataset / "days")
        assert _contents(dataset) == before
