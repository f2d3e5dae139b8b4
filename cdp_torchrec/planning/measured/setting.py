"""What a benchmark of sharding plans measures: the tables of a configuration, ids, and plans."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
import torch.distributed as dist
from torchrec.distributed.types import ShardingPlan
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.loader import Share
from cdp_torchrec.data.pooling_factors import measure_pooling_factors
from cdp_torchrec.distributed.optimizers import apply_sparse_optimizer
from cdp_torchrec.distributed.plans.config import TypeName
from cdp_torchrec.distributed.plans.file import read_plan
from cdp_torchrec.distributed.plans.hardware import HardwareConfig, load_hardware
from cdp_torchrec.distributed.plans.job import local_hardware
from cdp_torchrec.distributed.plans.planner import EmbeddingTable, find_tables
from cdp_torchrec.distributed.plans.search import plan_sharding
from cdp_torchrec.distributed.plans.topology import make_topology
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.experiment import check_against_data, open_data
from cdp_torchrec.model.ranking import RankingModel
from cdp_torchrec.model.train_task import TrainTask
from cdp_torchrec.planning.estimate import PlanEstimate
from cdp_torchrec.planning.estimator import estimate_given_plan
from cdp_torchrec.planning.measured.config import PlanBenchmarkConfig, PlansConfig
from cdp_torchrec.planning.measured.ids import draw_ids, resize_tables
from cdp_torchrec.whole_file import why_unwritable

STRATEGIES = ("auto", *get_args(TypeName))
_DEFAULT = ("table_wise", "row_wise", "column_wise", "data_parallel", "auto")


@dataclass(frozen=True)
class Setting:
    """What all plans have in common, on this rank."""

    config: PlansConfig
    device: torch.device
    hardware: HardwareConfig
    """Whose bandwidths the estimates are made with."""
    world_size: int
    num_nodes: int
    task: TrainTask
    """The model, its tables on the meta device."""
    tables: tuple[EmbeddingTable, ...]
    ids: Sequence[KeyedJaggedTensor]
    """One for each step."""
    pooling_factors: Mapping[str, float]

    @property
    def batch_size(self) -> int:
        """Impressions per rank."""
        return self.config.trainer.global_batch_size // self.world_size


def open_setting(config: PlansConfig, device: torch.device) -> Setting:
    """Read the ids and build the model, without memory for its tables.

    Args:
        config: the run and what is measured.
        device: where this rank computes.

    Raises:
        ConfigError: the configuration does not fit the dataset, the ranks, or the disk.
    """
    benchmark = config.benchmark
    _check_outputs(benchmark)
    share = Share(dist.get_rank(), dist.get_world_size())
    check_against_data(config, share.world_size)
    data = open_data(config, share=share, global_batch_size=config.trainer.global_batch_size)
    layout = resize_tables(data.layout, benchmark.rows)
    task = TrainTask(RankingModel(layout, config.model))
    apply_sparse_optimizer(task.model.sparse_arch, config.optimizer.sparse, device)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    hardware = local_hardware(device, ranks_here)
    if config.sharding.hardware is not None:
        named = load_hardware(config.sharding.hardware)
        hardware = named.model_copy(update={"ranks_per_node": ranks_here})
    return Setting(
        config=config,
        device=device,
        hardware=hardware,
        world_size=share.world_size,
        num_nodes=share.world_size // ranks_here,
        task=task,
        tables=tuple(find_tables(task)),
        ids=draw_ids(
            [data.train[p].to(device) for p in data.train.positions(0, benchmark.steps)],
            layout,
            benchmark.rows,
            seed=share.rank,
        ),
        pooling_factors=measure_pooling_factors(data.train),
    )


def make_plans(setting: Setting) -> dict[str, ShardingPlan]:
    """The plans to run, by name, as rank 0 makes or reads them; collective.

    Raises:
        ConfigError: no such strategy, or a plan that does not fit; on all ranks.
    """
    names = setting.config.benchmark.plans
    if not names:
        by_columns = setting.config.optimizer.sparse.kind != "rowwise_adagrad"
        names = tuple(name for name in _DEFAULT if by_columns or name != "column_wise")
    unknown = [n for n in names if n not in STRATEGIES and not n.endswith(".json")]
    if unknown:
        raise ConfigError(
            f"benchmark.plans: found {', '.join(map(repr, unknown))}; expected some of "
            f"{', '.join(STRATEGIES)}, or plan files (.json)"
        )
    return {
        name: from_rank_zero(lambda name=name: _plan(setting, name), purpose="make the plan")
        for name in names
    }


def estimate(setting: Setting, plan: ShardingPlan, hardware: HardwareConfig) -> PlanEstimate:
    """What the planner expects of a plan on some hardware.

    Args:
        setting: model and batches.
        plan: of that model.
        hardware: of all ranks.
    """
    return estimate_given_plan(
        setting.task,
        plan,
        setting.config.sharding,
        setting.config.optimizer.sparse,
        hardware=hardware,
        world_size=setting.world_size,
        batch_size=setting.batch_size,
        pooling_factors=setting.pooling_factors,
    )


def _plan(setting: Setting, name: str) -> ShardingPlan:
    sparse = setting.config.optimizer.sparse
    if name in STRATEGIES:
        config = setting.config.sharding.model_copy(update={"strategy": name, "plan": None})
        return plan_sharding(
            setting.task,
            config,
            sparse,
            topology=make_topology(setting.hardware, setting.world_size),
            batch_size=setting.batch_size,
            pooling_factors=setting.pooling_factors,
        )
    plan = read_plan(
        Path(name),
        setting.tables,
        optimizer=sparse,
        world_size=setting.world_size,
        local_world_size=setting.hardware.ranks_per_node,
        device=setting.device.type,
    )
    # What the estimates refuse, rank 0 must find while the other ranks listen.
    estimate(setting, plan, setting.hardware)
    return plan


def _check_outputs(config: PlanBenchmarkConfig) -> None:
    problems = []
    if config.output is not None and (reason := why_unwritable(config.output)):
        problems.append(f"benchmark.output = '{config.output}': {reason}")
    if config.output_hardware is not None:
        file = config.output_hardware
        if file.suffix != ".toml" or file.is_dir():
            problems.append(
                f"benchmark.output_hardware = '{file}': expected a file ending in .toml"
            )
        if reason := why_unwritable(file.parent):
            problems.append(f"benchmark.output_hardware = '{file}': {reason}")
    if problems:
        raise ConfigError.of(problems)
