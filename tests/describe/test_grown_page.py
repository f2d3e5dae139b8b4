"""The page of a dataset that has grown tells of the days that were appended."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cdp_torchrec.data.days import load_grown_schema
from cdp_torchrec.data.plausibility import Finding
from cdp_torchrec.data.prepare.compact import compact
from cdp_torchrec.describe.findings import findings
from cdp_torchrec.describe.measure import LogMeasures, measure_log
from cdp_torchrec.describe.sections import sections
from tests.conftest import MakeOnce
from tests.data.appended_log import DAYS, fill


def rows_of(log: LogMeasures) -> dict[str, list[list[str]]]:
    return {section.title: [list(row) for row in section.rows] for section in sections(log)}


@pytest.mark.slow
def test_days_stand_in_a_table_and_in_the_clicks_over_time(
    make_once: MakeOnce, tmp_path: Path, one_rank: None
) -> None:
    made = make_once("appended", fill)
    log, before = measure_log(made / "grown"), measure_log(made / "before")
    days = load_grown_schema(made / "grown").days
    assert log.appended is not None and before.appended is None
    assert log.appended.impressions.sum() == sum(day.requests.impressions for day in days)
    assert log.appended.clicks.sum() == sum(day.requests.clicks for day in days)
    last = log.bins.starts[-1]
    assert last <= days[-1].requests.last_timestamp < last + log.bins.width
    found = rows_of(log)
    table = found["Appended days"]
    assert [row[0] for row in table[1:]] == list(DAYS)
    assert [row[2] for row in table[1:]] == [str(day.requests.requests) for day in days]
    # All else is of the log before them.
    others = rows_of(before)
    assert {title: found[title] for title in others} == others
    assert found.keys() - others.keys() == {"Appended days"}
    doubted = replace(log, doubts={DAYS[1]: [Finding("warning", "no clicks")]})
    assert Finding("warning", f"{DAYS[1]}: no clicks") in findings(doubted)
    assert rows_of(doubted)["Appended days"][2][-1] == "1"
    shutil.copytree(made / "grown", tmp_path / "data")
    compact(tmp_path / "data")
    assert rows_of(measure_log(tmp_path / "data")) == found
