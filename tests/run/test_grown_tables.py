"""A run on appended days begins from the state of the day before, whose tables have fewer rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from cdp_torchrec.config import load_config
from cdp_torchrec.experiment import build_experiment, make_checkpointer, train
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.model.sparse_arch import is_table
from cdp_torchrec.run.records import CheckpointError
from cdp_torchrec.run.saved import find_checkpoint
from tests.conftest import MakeOnce
from tests.data.appended_log import DAYS, fill

CPU = torch.device("cpu")
FIRST_DAY = (f"data.train_on=['test','{DAYS[0]}']", f"data.test_on='{DAYS[1]}'")
SECOND_DAY = (f"data.train_on=['{DAYS[1]}']", f"data.test_on='{DAYS[2]}'")


SETTINGS = (
    "model.embedding_dim=4",
    "model.interest.kind=pooled",
    "optimizer.sparse.kind=adam",
    "trainer.global_batch_size=16",
    "trainer.max_steps=2",
)


def configured(dataset: Path, run_dir: Path, *more: str, min_count: int = 3) -> ExperimentConfig:
    item = f"data.vocabulary.item.min_count={min_count}"
    settings = (f"data.dir={dataset}", f"run.dir={run_dir}", item, *SETTINGS)
    return load_config(ExperimentConfig, [*settings, *more])


def state_of(config: ExperimentConfig, checkpoint: Path | None) -> dict[str, torch.Tensor]:
    """Parameters of a model that is new, or of one that begins from a checkpoint."""
    experiment = build_experiment(config, CPU)
    parallelized = experiment.parallelized
    if checkpoint is not None:
        assert config.run.dir is not None
        make_checkpointer(experiment, config.run.dir).load(
            checkpoint, parallelized.model, parallelized.optimizer, may_grow=True
        )
    state: dict[str, Any] = parallelized.model.state_dict()
    return {
        name: value.local_tensor() if isinstance(value, ShardedTensor) else value
        for name, value in state.items()
    }


@pytest.mark.slow
def test_rows_of_the_day_before_stay_and_those_of_new_ids_are_begun(
    make_once: MakeOnce, tmp_path: Path, one_rank: None
) -> None:
    dataset = make_once("appended", fill) / "grown"
    base = configured(dataset, tmp_path / "base")
    train(base, CPU)
    checkpoint = find_checkpoint(tmp_path / "base")
    before = state_of(configured(dataset, tmp_path / "again"), checkpoint)
    day = configured(dataset, tmp_path / "day", *FIRST_DAY)
    fresh, loaded = state_of(day, None), state_of(day, checkpoint)
    grown = [name for name in before if before[name].shape != loaded[name].shape]
    assert any("t_item" in name for name in grown) and all(map(is_table, grown))
    for name, old in before.items():
        rows = len(old) if name in grown else None
        assert torch.equal(loaded[name][:rows], old)
        if rows is not None:
            assert torch.equal(loaded[name][rows:], fresh[name][rows:])
    # The loop of a production: each day begins from the state of the day before.
    fork = f"run.fork_from={tmp_path / 'base'}"
    train(configured(dataset, tmp_path / "day", *FIRST_DAY, fork), CPU)
    fork = f"run.fork_from={tmp_path / 'day'}"
    report = train(configured(dataset, tmp_path / "next", *SECOND_DAY, fork), CPU)
    assert report.num_impressions > 0
    other = configured(dataset, tmp_path / "other", *FIRST_DAY, min_count=2)
    with pytest.raises(CheckpointError, match="is of another model"):
        state_of(other, checkpoint)
