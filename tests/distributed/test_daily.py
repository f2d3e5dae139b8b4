"""Day by day on several ranks, and killed in the middle of a day: the same end."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from cdp_torchrec.config import load_config
from cdp_torchrec.daily.config import DailyExperimentConfig
from cdp_torchrec.daily.loop import train_days
from cdp_torchrec.run.monitor import Monitor
from cdp_torchrec.run.saved import find_checkpoint
from tests.conftest import MakeOnce
from tests.data.appended_log import DAYS, fill
from tests.distributed.spawn import run_ranks
from tests.run.test_grown_tables import state_of
from tests.runs import losses

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SETTINGS = (
    "model.embedding_dim=4",
    "model.interest.kind=pooled",
    "optimizer.sparse.kind=rowwise_adagrad",
    "optimizer.sparse.lr=0.1",
    "data.vocabulary.item.min_count=3",
    "trainer.global_batch_size=16",
    "trainer.max_steps=6",
    "trainer.log_every_steps=1",
    "trainer.checkpoint_every_steps=2",
)
KILLED_AT = 3


def configured(dataset: Path, folder: Path) -> DailyExperimentConfig:
    return load_config(
        DailyExperimentConfig, [f"data.dir={dataset}", f"run.dir={folder}", *SETTINGS]
    )


def all_days(dataset: Path, folder: Path) -> list[Mapping[str, Any]]:
    return [day.metrics for day in train_days(configured(dataset, folder), torch.device("cpu"))]


def killed_in_a_day(dataset: Path, folder: Path, day: str) -> None:
    """Train all days; SIGKILL at a step of one, between two checkpoints."""
    record = Monitor.record

    def record_and_die(self: Monitor, kind: str, step: int, values: Any) -> None:
        record(self, kind, step, values)
        if (folder / day).exists() and (kind, step) == ("train", KILLED_AT):
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(Monitor, "record", record_and_die):
        all_days(dataset, folder)


def last_state(dataset: Path, folder: Path) -> dict[str, torch.Tensor]:
    run = configured(dataset, folder).runs()[-1]
    assert run.run.dir is not None
    return state_of(run, find_checkpoint(run.run.dir))


@pytest.fixture(scope="module")
def dataset(make_once: MakeOnce) -> Path:
    return make_once("appended", fill) / "grown"


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """What one rank makes of all days, and what it measures, if nothing stops it."""
    folder = tmp_path_factory.mktemp("whole") / "daily"
    return folder, run_ranks(1, all_days, dataset, folder)[0]


def test_two_ranks_learn_the_same_day_by_day_as_one(
    dataset: Path, whole: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, measured = whole
    of_two, same = run_ranks(2, all_days, dataset, tmp_path / "daily")
    assert of_two == same and len(of_two) == 1 + len(DAYS)
    for period in ("train", "test", *DAYS[:-1]):
        one, two = losses(folder / period), losses(tmp_path / "daily" / period)
        assert two == pytest.approx(one, rel=1e-5) and len(one) >= KILLED_AT
    for one, two in zip(measured, of_two, strict=True):
        assert two["num_impressions"] == one["num_impressions"]
        assert two["log_loss"] == pytest.approx(one["log_loss"], rel=1e-5)


def test_a_training_that_was_killed_in_the_middle_of_a_day_ends_as_if_it_had_not_been(
    dataset: Path, whole: tuple[Path, Any], tmp_path: Path, one_rank: None
) -> None:
    folder, measured = whole
    daily, day = tmp_path / "daily", DAYS[0]
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_ranks(1, killed_in_a_day, dataset, daily, day)
    assert losses(daily / day) == losses(folder / day)[:KILLED_AT] != losses(folder / day)
    assert not (daily / "days.json").exists()
    assert all_days(dataset, daily) == measured
    for period in ("train", "test", *DAYS[:-1]):
        assert losses(daily / period) == losses(folder / period)
    expected, found = last_state(dataset, folder), last_state(dataset, daily)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
