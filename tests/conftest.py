"""One thread per process, so that tests and ranks share the cores; and one small dataset."""

import gc
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the first import of torch
# A pool of compilers imports torch in each of its processes, which takes longer than what it saves.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

from cdp_torchrec.environment import quiet_libraries

quiet_libraries()


def pytest_configure() -> None:
    """Hear Ctrl-C, as what tests start shall: in a script's background it is ignored by all."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """This process is a rank, the only one."""
    from tests import runs

    with runs.one_rank():
        yield


_LONGEST = Path(__file__).parent / "docs" / "test_commands.py"
"""Takes longest."""

MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.hookimpl(trylast=True)  # of what is selected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many tests come first, and last those that would wait for the artifact.

    Compiling it takes a minute: one file makes it early, while the other processes do the rest.
    """
    tests = Counter(item.path for item in items)
    waiting = {item.path for item in items if "artifact" in getattr(item, "fixturenames", ())}
    makes = max(sorted(waiting), key=tests.__getitem__, default=None)
    first = (makes, _LONGEST)
    items.sort(key=lambda i: (i.path not in first, i.path in waiting, -tests[i.path]))


def pytest_collection_finish() -> None:
    """What is there now stays: no collection of garbage need look at it again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """As it was: libraries that look for leaks at the end would find all of it."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """A directory by name, filled by the first of the session's processes that asks for it.

    The others wait until it is whole.
    """
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, whole = session / name, session / f"{name}.whole"
        with FileLock(session / f"{name}.lock"):
            if not whole.exists():
                fill(folder)
                whole.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_dataset(make_once: MakeOnce) -> Path:
    """About 2,000 training requests of 8 candidates, of 300 users; do not write into it."""
    from cdp_torchrec.data.synthetic.config import SyntheticConfig
    from cdp_torchrec.data.synthetic.dataset import make_synthetic

    config = SyntheticConfig(
        num_users=300,
        num_categories=4,
        items_per_category=30,
        history_days=10,
        train_days=7,
        num_candidates=8,
    )
    return make_once("tiny", lambda folder: make_synthetic(config, folder))
