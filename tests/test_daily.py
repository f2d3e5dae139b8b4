"""A training day by day: each day is measured on, then trained on, and nothing is done twice."""

import json
import os
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.image import imread

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.daily import awaited_day, loop
from cdp_torchrec.daily.awaited_day import wait_for_day
from cdp_torchrec.daily.config import DailyExperimentConfig, DaysConfig
from cdp_torchrec.daily.loop import MeasuredDay, describe_days, draw_days, train_days
from cdp_torchrec.data.manifest import write_manifest
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.distributed.interruption import Interrupted
from cdp_torchrec.run.records import CheckpointError
from cdp_torchrec.trainer import Trainer
from tests.conftest import MakeOnce
from tests.data.appended_log import DAYS, fill
from tests.run.test_grown_tables import SETTINGS

CPU = torch.device("cpu")


def configured(dataset: Path, folder: Path, *more: str) -> DailyExperimentConfig:
    settings = [f"data.dir={dataset}", f"run.dir={folder}", *SETTINGS, *more]
    return load_config(DailyExperimentConfig, settings)


@pytest.fixture
def dataset(make_once: MakeOnce) -> Path:
    return make_once("appended", fill) / "grown"


def test_each_run_begins_from_the_one_before_and_is_measured_on_a_later_day(
    dataset: Path, tmp_path: Path
) -> None:
    runs = configured(dataset, tmp_path).runs()
    periods = ["train", "test", *DAYS]
    assert [(run.data.train_on, run.data.test_on) for run in runs] == [
        ((here,), following) for here, following in pairwise(periods)
    ]
    assert [run.run.fork_from for run in runs] == [None, *(run.run.dir for run in runs[:-1])]
    assert len(configured(dataset, tmp_path, f"days.last='{DAYS[0]}'").runs()) == 2


def test_settings_of_single_days_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.test_on = .*: is set for each day by itself"):
        configured(dataset, tmp_path, f"data.test_on='{DAYS[0]}'")
    with pytest.raises(ConfigError, match=r"days\.last = '1999-01-01': .* has test, 1970-01-02"):
        configured(dataset, tmp_path, "days.last='1999-01-01'").runs()


def test_runs_of_days_that_the_dataset_does_not_have_are_said(
    dataset: Path,
    tmp_path: Path,
    one_rank: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As after a day was removed, or by a configuration that names an older copy."""
    for period in ("train", *DAYS[:-1]):
        (tmp_path / period).mkdir()
        (tmp_path / period / "evaluation.json").write_text("{}")
    monkeypatch.setattr(loop, "_unfinished", mock.Mock(side_effect=ConfigError.of(["enough"])))
    for data in (dataset, dataset.with_name("before")):
        with pytest.raises(ConfigError, match="enough"):
            train_days(configured(data, tmp_path), CPU)
    said = [
        f"warning: {tmp_path / day} was measured on a day that {data} does not have: it is left "
        "out of the table"
        for day in DAYS[:-1]
    ]
    assert capsys.readouterr().out.splitlines() == said


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", '{"auc": 0.5}'])
def test_what_a_day_reached_is_named_where_it_is_damaged(
    dataset: Path, tmp_path: Path, one_rank: None, content: str
) -> None:
    damaged = tmp_path / "train" / "evaluation.json"
    damaged.parent.mkdir()
    damaged.write_text(content)
    with pytest.raises(CheckpointError, match=f"^{damaged}: is damaged: .*; remove it, and"):
        train_days(configured(dataset, tmp_path), CPU)


def test_the_last_day_to_follow_may_be_one_to_come(dataset: Path, tmp_path: Path) -> None:
    following = ("days.follow=true", "days.last='1970-02-01'")
    assert len(configured(dataset, tmp_path, *following).runs()) == 1 + len(DAYS)
    assert len(configured(dataset, tmp_path, "days.follow=true", "days.last=test").runs()) == 1
    with pytest.raises(ConfigError, match=r"days\.last = '1970-01-03T01-00-00': .* has test, 1970"):
        configured(dataset, tmp_path, "days.follow=true", "days.last='1970-01-03T01-00-00'").runs()
    with pytest.raises(ConfigError, match="'tomorrow' is no period"):
        configured(dataset, tmp_path, "days.follow=true", "days.last='tomorrow'")
    with pytest.raises(ConfigError, match="idle_timeout_s has no effect without follow"):
        configured(dataset, tmp_path, "days.idle_timeout_s=3")


def test_a_day_is_waited_for_until_it_comes_or_the_time_is_over_or_a_signal(
    dataset: Path,
    one_rank: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def waits(after: str, seconds: float) -> bool:
        config = DaysConfig(follow=True, idle_timeout_s=seconds)
        return wait_for_day(dataset, config, after=after, device=CPU)

    assert waits("test", 0)
    assert waits(DAYS[1], 0)
    assert not capsys.readouterr().out
    assert not waits(DAYS[2], 0)
    assert f"no day after '{DAYS[2]}' within 0 s, so this is the end" in capsys.readouterr().out

    def sleep(seconds: float) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(awaited_day, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    with pytest.raises(Interrupted, match=f"SIGTERM: waited for a day after '{DAYS[2]}'") as end:
        waits(DAYS[2], 60)
    assert end.value.exit_code == 128 + signal.SIGTERM


@pytest.mark.slow
def test_days_that_come_while_it_waits_are_trained_on_as_if_they_had_been_there(
    dataset: Path, tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing = shutil.copytree(dataset.with_name("before"), tmp_path / "data")
    (growing / "days").mkdir()
    coming = list(DAYS)

    def sleep(seconds: float) -> None:
        assert coming, "what came last is not taken"
        shutil.copytree(dataset / "days" / coming[0], growing / "days" / f".{coming[0]}")
        (growing / "days" / f".{coming[0]}").rename(growing / "days" / coming[0])
        if coming.pop(0) == DAYS[1]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(awaited_day, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    following = configured(
        growing, tmp_path / "following", "days.follow=true", f"days.last='{DAYS[2]}'"
    )
    with pytest.raises(Interrupted):
        train_days(following, CPU)
    assert coming == [DAYS[2]]
    found = train_days(following, CPU)
    monkeypatch.undo()
    whole = train_days(configured(dataset, tmp_path / "whole"), CPU)
    assert found == whole
    assert [day.measured_on for day in found] == ["test", *DAYS]


@pytest.mark.slow
def test_a_stopped_day_goes_on_and_a_lost_one_is_done_again(
    dataset: Path, tmp_path: Path, one_rank: None
) -> None:
    config = configured(dataset, tmp_path / "daily")
    whole = train_days(config, CPU)
    assert [day.measured_on for day in whole] == ["test", *DAYS]
    assert describe_days(whole).count("\n") == len(whole)
    assert (tmp_path / "daily" / "days.png").stat().st_size > 0
    written = json.loads((tmp_path / "daily" / "days.json").read_bytes())
    assert [day["auc"] for day in written] == [day.metrics["auc"] for day in whole]
    with mock.patch.object(Trainer, "train", side_effect=AssertionError("nothing is left")):
        assert train_days(config, CPU) == whole
        late = shutil.copytree(dataset, tmp_path / "late clicks")
        requests = next((late / "days" / DAYS[1] / "requests").glob("*.parquet"))
        table = pq.read_table(requests)
        labels = table["label"].to_pylist()
        labels[0], labels[1] = labels[1], labels[0]
        place = table.schema.get_field_index("label")
        field = table.schema.field("label")
        pq.write_table(table.set_column(place, field, pa.array(labels, field.type)), requests)
        write_manifest(late / "days" / DAYS[1])
        with pytest.raises(DatasetError, match=rf"{DAYS[0]} was measured on '{DAYS[1]}' of .*late"):
            train_days(configured(late, tmp_path / "daily"), CPU)
    shutil.rmtree(tmp_path / "daily" / DAYS[0])
    with (
        mock.patch.object(Trainer, "train", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        train_days(config, CPU)
    assert train_days(config, CPU) == whole
    (tmp_path / "daily").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / DAYS[0])
    moved = configured(dataset, tmp_path / "moved")
    assert train_days(moved, CPU) == whole
    (tmp_path / "moved").rename(tmp_path / "daily")
    earlier = configured(dataset, tmp_path / "daily", f"days.last='{DAYS[0]}'")
    assert train_days(earlier, CPU) == whole[:2]
    assert json.loads((tmp_path / "daily" / "days.json").read_bytes()) == written
    for other in ("seed=9", "trainer.patience=3"):
        with pytest.raises(ConfigError, match=rf"{other[:4]}.*: the run (.|\n)*another run\.dir"):
            train_days(configured(dataset, tmp_path / "daily", other), CPU)
    train_days(configured(dataset, tmp_path / "daily", "trainer.log_every_steps=7"), CPU)


def test_the_curve_of_many_days_is_no_wider_than_that_of_forty(tmp_path: Path) -> None:
    metrics = dict.fromkeys(("auc", "gauc", "ne", "calibration"), 0.5)
    shapes = []
    for count in (1, 40, 300):
        days = [MeasuredDay("train", f"day {n}", metrics) for n in range(count)]
        draw_days(days, tmp_path / "days.png")
        shapes.append(imread(tmp_path / "days.png").shape)
    assert shapes[0][1] < shapes[1][1] == shapes[2][1]
