"""Where work says how far it is: bars in terminals, lines in logs, nothing on other ranks."""

import io
import re
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from cdp_torchrec import progress as module
from cdp_torchrec.progress import LINE_EVERY_S, WIDTH, ProgressBar, Stages, progress
from tests.paths import ROOT


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that only moves when it is told to.

    The module's alone: an event loop that lives in this process would sleep by it, for hours.
    """
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], strftime=time.strftime)
    monkeypatch.setattr(module, "time", clock)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    return sleep


class Terminal(io.StringIO):
    """A standard error that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


DATED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def test_a_log_gets_a_dated_line_every_few_seconds_without_carriage_returns(
    sleep: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar("train", total=40, unit="steps", done=10) as bar:
        bar.note("loss 0.25")
        for _ in range(30):
            sleep(LINE_EVERY_S / 10)
            bar.advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    lines = err.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(DATED + r"train: 20 of 40 steps, 50 %, 00:10 left, loss 0\.25", lines[0])


def test_what_was_done_before_does_not_count_as_fast(
    sleep: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar("compare", total=4, unit="cells") as bar:
        bar.skip()
        bar.skip()
        sleep(60)
        bar.advance()
    assert "compare: 3 of 4 cells, 75 %, 01:00 left" in capsys.readouterr().err


def test_work_that_is_over_at_once_leaves_no_line(
    sleep: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(progress("abc", "spell", unit="letters")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_an_unknown_total_is_counted_without_an_end(
    sleep: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in progress(iter("ab"), "read", unit="rows"):
        sleep(LINE_EVERY_S)
    assert [line[20:] for line in capsys.readouterr().err.splitlines()] == [
        "read: 1 rows",
        "read: 2 rows",
    ]


def test_other_ranks_say_nothing(
    sleep: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar("train", total=2, unit="steps", active=False) as bar:
        sleep(2 * LINE_EVERY_S)
        bar.advance()
        bar.say("validation")
    assert capsys.readouterr() == ("", "")


def test_a_bar_fits_its_width_on_a_wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "250")
    with ProgressBar("train", total=2, unit="steps", keep=True) as bar:
        bar._bar.delay = 0
        bar.note("loss 0.2345, bce_loss 0.2345, noise_loss 0.2345, impressions/s 1.234e+04" * 2)
        bar.advance(2)
    drawn = [part for part in re.split(r"[\r\n]", terminal.getvalue()) if part]
    assert drawn
    assert max(map(len, drawn)) <= WIDTH


def test_what_is_said_stands_dated_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("train", total=2, unit="steps") as bar:
        bar.say("step 1: fine")
    assert re.fullmatch(DATED + "step 1: fine\n", capsys.readouterr().out)


SPEAK = """
import logging, sys
from cdp_torchrec.progress import date_logs
date_logs(active=sys.argv[1] == "0")
logging.getLogger("cdp_torchrec.interest.qin").warning("no query")
logging.getLogger("cdp_torchrec.interest.qin").error("broken")
"""


@pytest.mark.parametrize(
    ("rank", "words"),
    [("0", ["WARNING: no query", "ERROR: broken"]), ("1", ["ERROR: broken"])],
)
def test_one_rank_says_dated_what_all_ranks_notice(rank: str, words: list[str]) -> None:
    command = [sys.executable, "-c", SPEAK, rank]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = run.stderr.splitlines()
    assert [line[20:] for line in lines] == words
    assert all(re.match(DATED, line) for line in lines)


def test_stages_are_dated_lines_in_a_log_and_in_a_terminal_alike(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stages, silent = Stages("export", total=2), Stages("export", total=2, active=False)
    for what in ("read", "compile"):
        stages.begin(what)
        silent.begin(what)
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert re.fullmatch(DATED + "export 1/2: read", first)
    assert re.fullmatch(DATED + "export 2/2: compile", second)
