"""A job that measures plans: the tables of a configuration, ids, and the plans to run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
import torch.distributed as dist
from torchrec.distributed.types import ShardingPlan
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.loader import Share
from cdp_torchrec.distributed.plans.config import TypeName
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.search import choose_plan
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.experiment import open_data, plan_problem
from cdp_torchrec.experiment_config import check_against_data
from cdp_torchrec.planning.estimator import estimate_plan
from cdp_torchrec.planning.measured.config import PlanBenchmarkConfig, PlansConfig
from cdp_torchrec.planning.measured.ids import draw_ids
from cdp_torchrec.planning.table_rows import resize_tables, wrong_rows
from cdp_torchrec.progress import progress
from cdp_torchrec.whole_file import why_unwritable

STRATEGIES = ("auto", *get_args(TypeName))
_DEFAULT = ("table_wise", "row_wise", "column_wise", "data_parallel", "auto")


FITTED = "# Fitted by launch/benchmark.py plans"
"""Begins the files of hardware that this benchmark writes, and may write anew."""


@dataclass(frozen=True)
class MeasuredJob:
    """What all plans have in common, on this rank."""

    config: PlansConfig
    device: torch.device
    problem: PlanProblem
    """Its hardware is that whose bandwidths the estimates are made with."""
    ids: Sequence[KeyedJaggedTensor]
    """One for each step."""

    @property
    def num_nodes(self) -> int:
        """Number of machines."""
        return self.problem.world_size // self.problem.local_world_size


def check_settings(config: PlansConfig) -> None:
    """What shows before there are data and ranks.

    Raises:
        ConfigError: a result cannot be written, no such strategy, or a setting that nothing reads.
    """
    _check_outputs(config.benchmark)
    names = config.benchmark.plans
    unknown = [n for n in names if n not in STRATEGIES and not n.endswith(".json")]
    if unknown:
        raise ConfigError(
            f"benchmark.plans: found {', '.join(map(repr, unknown))}; expected some of "
            f"{', '.join(STRATEGIES)}, or plan files (.json)"
        )
    if config.sharding.strategy != "auto" or config.sharding.plan is not None:
        raise ConfigError(
            "sharding.strategy, sharding.plan: benchmark.plans says which plans are measured, by "
            "strategy or file; leave these out"
        )


def open_job(config: PlansConfig, device: torch.device) -> MeasuredJob:
    """Read the ids and build the model, without memory for its tables; collective.

    Args:
        config: the run and what is measured.
        device: where this rank computes.

    Raises:
        ConfigError: the configuration does not fit the dataset or the ranks.
    """
    benchmark = config.benchmark
    share = Share(dist.get_rank(), dist.get_world_size())
    check_against_data(config, share.world_size)
    data = open_data(config, share=share, global_batch_size=config.trainer.global_batch_size)
    if config.sharding.sharding_group_size not in (None, share.world_size):
        raise ConfigError(
            f"sharding.sharding_group_size = {config.sharding.sharding_group_size}: what is "
            "measured is one copy of the tables on all ranks; leave it out"
        )
    if wrong := wrong_rows(data.layout, benchmark.rows, key="benchmark.rows"):
        raise ConfigError.of(wrong)
    if any(table.managed_collision for table in data.layout.tables.values()):
        raise ConfigError(
            "data.vocabulary: a table with managed_collision finds its rows by what it has seen, "
            "and is not measured; leave managed_collision out"
        )
    data = replace(data, layout=resize_tables(data.layout, benchmark.rows))
    positions = data.train.positions(0, benchmark.steps)
    return MeasuredJob(
        config=config,
        device=device,
        problem=plan_problem(config, data, device),
        ids=draw_ids(
            [
                data.train[position].to(device)
                for position in progress(positions, "read", unit="batches", active=share.rank == 0)
            ],
            data.layout,
            benchmark.rows,
            seed=share.rank,
        ),
    )


def make_plans(job: MeasuredJob) -> dict[str, ShardingPlan]:
    """The plans to run, by name, as rank 0 makes or reads them; collective.

    Raises:
        ConfigError: a plan that does not fit; on all ranks.
    """
    names = job.config.benchmark.plans
    if not names:
        by_columns = job.problem.optimizer.kind != "rowwise_adagrad"
        names = tuple(name for name in _DEFAULT if by_columns or name != "column_wise")
    return {
        name: from_rank_zero(lambda name=name: _plan(job.problem, name), purpose="make the plan")
        for name in names
    }


def _plan(problem: PlanProblem, name: str) -> ShardingPlan:
    is_strategy = name in STRATEGIES
    chosen = {"strategy": name, "plan": None} if is_strategy else {"plan": Path(name)}
    sharding = problem.sharding.model_copy(update=chosen)
    plan = choose_plan(replace(problem, sharding=sharding))
    if not is_strategy:
        # What the estimates refuse, rank 0 must find while the other ranks listen.
        estimate_plan(problem, plan)
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
        elif file.exists() and not file.read_bytes().startswith(FITTED.encode()):
            problems.append(
                f"benchmark.output_hardware = '{file}': is there and was not written by this "
                "benchmark; name another file"
            )
        if reason := why_unwritable(file.parent):
            problems.append(f"benchmark.output_hardware = '{file}': {reason}")
    if problems:
        raise ConfigError.of(problems)
