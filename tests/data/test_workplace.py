"""However a preparation ends, nothing of it is left but a whole dataset."""

import fcntl
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdp_torchrec.data.prepare.database import EngineLimits, open_database
from cdp_torchrec.data.prepare.logs.trivago import prepare_trivago
from cdp_torchrec.data.prepare.staging import PreparationError, build_dataset
from cdp_torchrec.data.prepare.workplace import dataset_beside, preparing, staging_beside
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.data.synthetic.config import SyntheticConfig
from cdp_torchrec.data.synthetic.dataset import make_synthetic
from tests.data.staged_log import SPEC, random_log, stage, two_requests
from tests.docs.logs import write_trivago


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_as_an_exception_that_cleans_up(
    tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "deep" / "data"
    # Of a command: what runs tests may ignore SIGINT.
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    of_tests = signal.signal(number, default)
    with (
        pytest.raises((SystemExit, KeyboardInterrupt)) as caught,
        preparing(output),
        staging_beside(output) as staging,
        dataset_beside(output) as partial,
    ):
        (staging / "file").touch()
        (partial / "file").touch()
        signal.raise_signal(number)
    if number != signal.SIGINT:
        assert getattr(caught.value, "code", None) == 128 + number
    assert signal.signal(number, of_tests) == default
    assert list(output.parent.iterdir()) == []


def test_a_signal_within_a_query_is_no_error_of_the_engine(tmp_path: Path) -> None:
    query = "CREATE OR REPLACE TABLE x AS SELECT hash(range) AS h FROM range(300000) ORDER BY h"
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    with (
        pytest.raises(SystemExit),
        preparing(tmp_path / "data"),
        staging_beside(tmp_path / "data") as staging,
        open_database(staging / "work", EngineLimits()) as connection,
    ):
        timer.start()
        for _ in range(1000):
            connection.execute(query)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_one_left_is_removed_by_the_next_of_the_same_output(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    left = [tmp_path / name for name in (".data.staging-1", ".data.partial-2", ".other.partial-3")]
    for path in left:
        path.mkdir()
        (path / "tables.duckdb").touch()
    running = tmp_path / ".data.staging-4"
    running.mkdir()
    lock = os.open(running, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        build_dataset(stage(tmp_path / "s", two_requests(), []), tmp_path / "data", SPEC)
    finally:
        os.close(lock)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".data.staging-4", ".other.partial-3", "data", "s"]
    for path in left[:2]:
        assert f"removed {path}, left behind by a preparation that was killed" in caplog.text


def test_two_preparations_of_one_output_are_one_and_a_message(tmp_path: Path) -> None:
    staging, output = stage(tmp_path / "s", two_requests(), []), tmp_path / "data"
    with dataset_beside(output) as partial:
        with pytest.raises(DatasetError, match="data: another preparation writes it; wait for its"):
            build_dataset(staging, output, SPEC)
        (partial / "file").touch()
    assert [path.name for path in output.iterdir()] == ["file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "s"]


def test_output_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for output, message in (
        (tmp_path / "file", "exists; remove it or choose another output directory"),
        (tmp_path / "link", "exists; remove it or choose another output directory"),
        (tmp_path / "file" / "data", f"cannot be made: {tmp_path / 'file'} is not a writable"),
        (Path("/proc/data"), "data cannot be made: /proc cannot hold files: "),
    ):
        with pytest.raises((DatasetError, PreparationError), match=message):
            build_dataset(tmp_path / "nowhere", output, SPEC)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many KiB; one at a time."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kib: int) -> Path:
        unmount()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no tmpfs can be mounted here: {error}")
        return folder

    def unmount() -> None:
        if folder.is_mount():
            subprocess.run(["umount", str(folder)], check=True)

    yield mount
    unmount()


def test_nothing_is_left_on_a_full_disk(tmp_path: Path, small_disk: Callable[[int], Path]) -> None:
    staging = stage(tmp_path / "s", *random_log(0))
    log = tmp_path / "log"
    write_trivago(log)
    world = SyntheticConfig(num_users=300, history_days=5, train_days=3)
    # Each of the sizes stops another step.
    cases: list[tuple[int, Callable[[Path], Any]]] = [
        (4, lambda output: build_dataset(staging, output, SPEC)),
        (64, lambda output: build_dataset(staging, output, SPEC)),
        (64, lambda output: prepare_trivago(log, output)),
        (700, lambda output: prepare_trivago(log, output)),
        (64, lambda output: make_synthetic(world, output)),
        (1500, lambda output: make_synthetic(world, output)),
    ]
    for kib, make in cases:
        disk = small_disk(kib)
        with pytest.raises(PreparationError) as caught:
            make(disk / "data")
        expected = f"{disk / 'data'} was not made, nothing is left of it: No space left on device"
        assert str(caught.value) == expected
        assert list(disk.iterdir()) == []
