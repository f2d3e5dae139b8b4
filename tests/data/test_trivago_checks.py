"""Every way in which the files of a RecSys Challenge 2019 log can be wrong."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdp_torchrec.data.prepare.logs.trivago import prepare_trivago
from cdp_torchrec.data.prepare.staging import PreparationError
from cdp_torchrec.data.schema import DatasetError
from tests.data.trivago_events import START, clickout, event, next_day, write_log
from tests.paths import LAUNCH, ROOT

BAD_EVENTS: dict[str, tuple[dict[str, Any], str]] = {
    "unequal lists": (clickout(3, 3, "1", "1|2", prices="5"), "impressions and prices are lists"),
    "no prices": (clickout(3, 3, "1", "1|2", prices=""), "impressions and prices are lists"),
    "empty id": (clickout(3, 3, "1", "1||2"), "impressions holds an empty id"),
    "price": (clickout(3, 3, "1", "1|2", prices="5|x"), "prices holds something else than"),
    "time": (event(3, 3, "search for poi") | {"timestamp": "now"}, "timestamp is no whole number"),
    "part of a second": (
        event(3, 3, "search for poi") | {"timestamp": f"{START + 3}.7"},
        f"timestamp is no whole number of seconds: {START + 3}.7",
    ),
    "exponent": (
        event(3, 3, "search for poi") | {"timestamp": "1.5e9"},
        "timestamp is no whole number of seconds: 1.5e9",
    ),
    "milliseconds": (
        event(3, 3, "search for poi") | {"timestamp": 1000 * START},
        "timestamp is no time from 2000 to 2099 in seconds since 1970 (milliseconds have 13 digits",
    ),
    "minutes": (
        event(3, 3, "search for poi") | {"timestamp": START // 60},
        "timestamp is no time from 2000 to 2099 in seconds since 1970",
    ),
    "nan": (clickout(3, 3, "1", "1|2", prices="5|nan"), "prices holds something else than"),
    "rounded step": (event(3, 3, "x") | {"step": "3.0"}, "step is no number from 1: 3.0"),
    "step": (event(3, 3, "search for poi") | {"step": "third"}, "step is no number from 1"),
    "step 0": (event(3, 0, "search for poi"), "step is no number from 1"),
    "user": (event(3, 3, "search for poi", user_id=""), "user_id, session_id or action_type"),
    "same step": (event(3, 2, "search for poi"), "step 2 of session s1 does not come before step"),
    "earlier step": (event(1, 9, "x"), "step 2 of session s1 does not come before step 9"),
}


@pytest.mark.parametrize("case", BAD_EVENTS)
def test_bad_event_is_named_with_its_line(tmp_path: Path, case: str) -> None:
    bad, message = BAD_EVENTS[case]
    good = [event(1, 1, "search for poi", "x"), clickout(2, 2, "1", "1|2")]
    log = write_log(tmp_path / "log", [*good, bad, next_day()])
    with pytest.raises(DatasetError) as caught:
        prepare_trivago(log, tmp_path / "data")
    line = 3 if case == "earlier step" else 4
    assert str(caught.value).startswith(f"{log / 'train.csv'}: line {line}: {message}")
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_too_many_events_in_a_second_are_an_error(tmp_path: Path) -> None:
    events = [event(1, n, "search for poi", "x") for n in range(1, 1002)]
    log = write_log(tmp_path / "log", [*events, next_day()])
    with pytest.raises(DatasetError, match="line 2: user ann has 1001 events in second 1541548801"):
        prepare_trivago(log, tmp_path / "data")


def test_log_without_usable_clickout_is_an_error(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", [clickout(1, 1, "7", "1|2")])
    with pytest.raises(DatasetError, match="none of 1 clickouts has its item in impressions"):
        prepare_trivago(log, tmp_path / "data")


def test_missing_column_is_named_with_the_columns_found(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("user_id,session_id\na,b\n")
    message = r"train.csv: column 'timestamp' is missing, found \['user_id', 'session_id'\]"
    with pytest.raises(DatasetError, match=message):
        prepare_trivago(tmp_path, tmp_path / "data")


def test_line_with_too_few_cells_is_named(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", [clickout(1, 1, "1", "1|2"), next_day()])
    with (log / "train.csv").open("a") as file:
        file.write("cut,off\n")
    with pytest.raises(DatasetError, match=r"train.csv: malformed line: .*Row #4: Expected 12"):
        prepare_trivago(log, tmp_path / "data")


def test_log_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", [clickout(1, 1, "1", "1|2", city="KOLN"), next_day()])
    content = (log / "train.csv").read_bytes()
    (log / "train.csv").write_bytes(content.replace(b"KOLN", b"K\xd6LN"))
    with pytest.raises(DatasetError, match=r"line: .*Row #2: .*invalid UTF8.* is not utf-8"):
        prepare_trivago(log, tmp_path / "data")


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_cut_off_compressed_log_is_named(tmp_path: Path, suffix: str) -> None:
    events = [event(n, n, "interaction item image", str(n)) for n in range(1, 500)]
    log = write_log(tmp_path / "log", [*events, next_day()], f"train.csv{suffix}")
    path = log / f"train.csv{suffix}"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=rf"{path}: the file is cut off"):
        prepare_trivago(log, tmp_path / "data")
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_damaged_compressed_log_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train.csv{suffix}"
    path.write_bytes(b"this is no archive at all, only text")
    with pytest.raises(DatasetError, match=rf"{path}: damaged compressed file"):
        prepare_trivago(tmp_path, tmp_path / "data")


def test_empty_log_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    with pytest.raises(DatasetError, match=r"train.csv: the file is empty"):
        prepare_trivago(tmp_path, tmp_path / "data")


def test_directory_without_the_official_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"neither train.csv nor events.csv there"):
        prepare_trivago(tmp_path, tmp_path / "data")
    with pytest.raises(DatasetError, match="no such directory"):
        prepare_trivago(tmp_path / "nowhere", tmp_path / "data")


def test_existing_output_is_refused_before_the_log_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("nonsense")
    with pytest.raises(DatasetError, match=r"log exists; remove it or choose another"):
        (tmp_path / "log").mkdir()
        prepare_trivago(tmp_path, tmp_path / "log")


def test_output_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", [clickout(1, 1, "1", "1|2"), next_day()])
    with pytest.raises(PreparationError, match=r"data cannot be made: .* is not a writable dir"):
        prepare_trivago(log, log / "train.csv" / "data")


def test_script_fails_with_the_message_alone_and_exit_code_1(tmp_path: Path) -> None:
    write_log(tmp_path, [clickout(1, 1, "1", "1|2", prices="5")])
    script = LAUNCH / "prepare_data.py"
    arguments = ["trivago", "--input", str(tmp_path), "--output", str(tmp_path / "data")]
    result = subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 1
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line.endswith(
        "train.csv: line 2: impressions and prices are lists of unequal length"
    )
    assert "Traceback" not in result.stderr
