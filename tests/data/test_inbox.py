"""What arrives in an inbox is appended once, in the order of names, as soon as it is whole."""

import fcntl
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from cdp_torchrec.commands import prepare_data
from cdp_torchrec.data.prepare.arrivals import inbox
from cdp_torchrec.data.prepare.arrivals.inbox import SUCCESS, follow
from cdp_torchrec.data.schema import DatasetError
from tests.conftest import MakeOnce
from tests.data.appended_log import DAY_MS, DAYS, cut, files, fill
from tests.data.staged_log import random_log, read_rows, request, stage
from tests.data.test_append import raw_rows


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> Path:
    """Do not write into it."""
    return make_once("appended", fill)


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return shutil.copytree(made / "before", tmp_path / "data")


def arrive(entry: Path, staged: Path) -> Path:
    """As a writer that follows the rules: the mark comes last."""
    shutil.copytree(staged, entry)
    (entry / SUCCESS).touch()
    return entry


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What happens in the world while the inbox is waited for, one thing for each look."""
    events: list[Callable[[], object]] = []

    def sleep(seconds: float) -> None:
        events.pop(0)()

    monkeypatch.setattr(inbox, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    return lambda *happening: events.extend(happening)


def stop() -> None:
    raise InterruptedError


def test_what_arrives_is_appended_as_if_it_had_been_appended_by_hand(
    made: Path, dataset: Path, asleep: Callable[..., None]
) -> None:
    arriving = dataset.with_name("inbox")
    arrive(arriving / DAYS[0], made / "day-1")
    shutil.copytree(made / "day-3", arriving / DAYS[2])
    asleep(
        lambda: arrive(arriving / DAYS[1], made / "day-2"),
        lambda: [(arriving / DAYS[2] / t / SUCCESS).touch() for t in ("requests", "behaviours")],
        stop,
    )
    seen = []
    with pytest.raises(InterruptedError):
        seen.extend(day.name for day in follow(dataset, arriving))
    assert files(dataset) == files(made / "grown")
    for path in (p for p in (made / "grown").rglob("*") if p.is_file()):
        assert (dataset / path.relative_to(made / "grown")).read_bytes() == path.read_bytes()
    # The place is kept with the rows: what is there is not appended again, and may go.
    shutil.rmtree(arriving / DAYS[0])
    assert list(follow(dataset, arriving, idle_timeout_s=0)) == []


def test_an_entry_is_read_after_its_mark_only_and_later_ones_wait_for_it(
    made: Path, dataset: Path, asleep: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    arriving = dataset.with_name("inbox")
    first = shutil.copytree(made / "day-1", arriving / DAYS[0])
    half = next((first / "requests").iterdir())
    content = half.read_bytes()
    half.write_bytes(content[: len(content) // 2])
    arrive(arriving / DAYS[1], made / "day-2")
    (arriving / ".2025-01-01.tmp").mkdir()
    with caplog.at_level(logging.WARNING):
        assert list(follow(dataset, arriving, idle_timeout_s=0)) == []
    assert f"{first}: waiting for its _SUCCESS; {DAYS[1]} behind it is complete" in caplog.text

    def finish() -> None:
        half.write_bytes(content)
        (first / SUCCESS).touch()

    asleep(finish, stop)
    assert next(follow(dataset, arriving)).name == DAYS[0]


def test_parts_of_a_day_are_periods_with_a_time_and_read_as_the_whole_day(
    made: Path, dataset: Path
) -> None:
    arriving, noon = dataset.with_name("inbox"), DAY_MS + DAY_MS // 2
    names = (f"{DAYS[0]}T00-00-00", f"{DAYS[0]}T12-00-00")
    for name, is_later in zip(names, (False, True), strict=True):
        arrive(arriving / name, part_of_day(arriving.with_name(name), noon, is_later=is_later))
    assert [day.name for day in follow(dataset, arriving, idle_timeout_s=0)] == list(names)
    parts = [f"days/{name}/requests" for name in names]
    whole = read_rows(made / "grown", f"days/{DAYS[0]}/requests")
    assert raw_rows(dataset, read_rows(dataset, *parts)) == raw_rows(made / "grown", whole)


def part_of_day(folder: Path, noon: int, *, is_later: bool) -> Path:
    both = [
        [row for row in cut(rows, 1) if (row["timestamp"] >= noon) == is_later]
        for rows in random_log(0)
    ]
    return stage(folder, *both)


BAD: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "too late": (
        lambda made, arriving: arrive(arriving / "1970-01-01T23-00-00", made / "day-1"),
        rf"T23-00-00: comes too late: .* has {DAYS[2]} already",
    ),
    "changed since": (
        lambda made, arriving: stage_more(arrive(arriving / DAYS[2], made / "day-3")),
        rf"{DAYS[2]}/requests: has \d+ rows now, \d+ of them were appended",
    ),
    "another name": (
        lambda made, arriving: (arriving / "hour=12").mkdir(),
        "hour=12: is no entry of an inbox: .* 2025-02-10T13-00-00",
    ),
    "a file": (
        lambda made, arriving: (arriving / "part-0.parquet").touch(),
        r"part-0.parquet: is no entry",
    ),
    "rows of before": (
        lambda made, arriving: arrive(
            arriving / "1970-01-05", stage(arriving.with_name("old"), [request(7_000)], [])
        ),
        r"1970-01-05/requests: the first request is of .*, not later than",
    ),
}


def stage_more(entry: Path) -> None:
    shutil.copy(entry / "requests" / "part-0.parquet", entry / "requests" / "part-9.parquet")


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_appended_is_one_message_and_changes_nothing(
    made: Path, tmp_path: Path, name: str
) -> None:
    (arriving := tmp_path / "inbox").mkdir()
    dataset = shutil.copytree(made / "grown", tmp_path / "data")
    before = files(dataset)
    make, message = BAD[name]
    make(made, arriving)
    with pytest.raises(DatasetError, match=message) as raised:
        list(follow(dataset, arriving, idle_timeout_s=0))
    assert "\n" not in str(raised.value)
    assert files(dataset) == before


def test_the_command_waits_for_another_append_and_ends_by_sigterm(
    made: Path, dataset: Path, asleep: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    arriving = dataset.with_name("inbox")
    arrive(arriving / DAYS[0], made / "day-1")
    other = os.open(dataset, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)  # as another append holds it
    asleep(lambda: os.close(other), lambda: os.kill(os.getpid(), signal.SIGTERM))
    line = ["follow", str(dataset), "--inbox", str(arriving)]
    with pytest.raises(SystemExit) as end:
        prepare_data.main(line)
    assert end.value.code == 128 + signal.SIGTERM
    assert f"appended {DAYS[0]}: " in capsys.readouterr().out
    prepare_data.main([*line, "--idle-timeout", "0"])
    assert "nothing new for 0 s" in capsys.readouterr().out
