"""A training day by day: each day is measured on, then trained on, and nothing is done twice."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
import torch

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.daily import describe_days, train_days
from cdp_torchrec.daily_config import DailyExperimentConfig
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
    shutil.rmtree(tmp_path / "daily" / DAYS[0])
    with (
        mock.patch.object(Trainer, "train", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        train_days(config, CPU)
    assert train_days(config, CPU) == whole
    with pytest.raises(ConfigError, match="would be another run"):
        train_days(configured(dataset, tmp_path / "daily", "seed=9"), CPU)
