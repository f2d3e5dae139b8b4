"""An appended day that can hardly be meant is said, with the figure, wherever it is read."""

import shutil
from pathlib import Path

import pytest

from cdp_torchrec.commands import prepare_data
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.days import load_days
from cdp_torchrec.data.plausibility import check_plausible, judge_days
from cdp_torchrec.data.prepare.append import append_day
from cdp_torchrec.data.prepare.inspect import describe_dataset
from cdp_torchrec.data.schema import load_schema
from tests.conftest import MakeOnce
from tests.data.appended_log import DAY_MS, DAYS, fill
from tests.data.staged_log import request, stage

DAY = "1970-01-16"


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> Path:
    """Do not write into it."""
    return make_once("appended", fill)


def doubts(dataset: Path, name: str) -> list[str]:
    schema = load_schema(dataset)
    return [f.text for f in judge_days(dataset, schema, load_days(dataset, schema))[name]]


def test_days_like_those_before_are_not_doubted(made: Path) -> None:
    assert {day: doubts(made / "grown", day) for day in DAYS} == {day: [] for day in DAYS}


def test_a_single_day_that_is_missing_is_said(made: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "data"
    shutil.copytree(made / "before", dataset)
    append_day(dataset, made / "day-2")
    assert [text for text in doubts(dataset, DAYS[1]) if "days lie between" in text] != []


def test_a_day_without_clicks_and_of_strangers_is_said_everywhere(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "data"
    shutil.copytree(made / "grown", dataset)
    requests = [
        request(
            9_000 + number,
            user_id=f"stranger{number}",
            timestamp=15 * DAY_MS + number,
            item_id=["a", f"new{number}"] * 20,
            category_id=["c1"] * 40,
            price=[None] * 40,
            label=[0] * 40,
        )
        for number in range(30)
    ]
    stage(tmp_path / "day", requests, [])
    prepare_data.main(["append", str(dataset), "--input", str(tmp_path / "day")])
    said = capsys.readouterr().out
    for figure in (
        "0.00% of the 1,200 impressions are clicks",
        "the click rate is 0 times that of the training split",
        "100.0% of the 30 requests are of users that were never seen before",
        "100.0% of the 1,200 values of 'item_id' were never seen before",
        "'price' is missing in ",
        "100.00% of the 30 requests have no behaviour before them",
        "there are no behaviours",
        "11.0 days lie between the last moment of the dataset and the first request",
    ):
        assert f"warning: {DAY}: {figure}" in said
        assert any(text.startswith(figure) for text in doubts(dataset, DAY))
    text, findings = describe_dataset(dataset)
    assert f"warning: {DAY}: there are no behaviours" in text
    assert not any("there are no behaviours" in finding.text for finding in findings)
    # A training is told of the days that it reads, and of no others.
    for reads, known in (((DAYS[2],), False), ((DAYS[2], DAY), True)):
        train_on = ("test", *DAYS[:2]) if not known else ("test", *DAYS)
        config = DataConfig(dir=dataset, train_on=train_on, test_on=reads[-1])
        told = check_plausible(config)
        assert any(text.startswith(f"{DAY}: 0.00% of the 1,200") for text in told) == known
    config = DataConfig(
        dir=dataset, train_on=("test", *DAYS), test_on=DAY, exclude_features=("price",)
    )
    assert not any("'price'" in text for text in check_plausible(config))
