"""What is wrong with an exploration, found before anything is planned."""

from collections.abc import Sequence

import torch

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.optimizers import needs_dense_gradients
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.plans.constraints import table_constraints
from cdp_torchrec.distributed.plans.file import read_plan
from cdp_torchrec.distributed.plans.planner import proposer_mistakes
from cdp_torchrec.planning.case import PlanCase
from cdp_torchrec.planning.config import PlanningExperimentConfig
from cdp_torchrec.planning.outside import OutsideWorkload
from cdp_torchrec.planning.outside_config import OutsideConfig
from cdp_torchrec.planning.workload import Workload
from cdp_torchrec.whole_file import why_unwritable

_OWN = "constraints"
"""The strategy that reads what [sharding] says."""


def check_settings(
    config: PlanningExperimentConfig | OutsideConfig, cases: Sequence[PlanCase]
) -> None:
    """What shows without reading the dataset.

    Raises:
        ConfigError: a setting would change nothing, or plans to compare are none of the cases.
    """
    sharding, plain = config.sharding, ShardingConfig()
    problems = []
    for key in ("output", "cache"):
        folder = getattr(config.planning, key)
        if folder is None:
            continue
        if folder.exists() and not folder.is_dir():
            problems.append(f"planning.{key} = '{folder}' is a file: name a directory")
        elif reason := why_unwritable(folder):
            problems.append(f"planning.{key} = '{folder}': {reason}")
    if _OWN not in config.planning.strategies:
        problems += [
            f"sharding.{key}: none of planning.strategies = {list(config.planning.strategies)} "
            f"reads it; add '{_OWN}', or leave it out"
            for key in ("strategy", "tables", "plan")
            if getattr(sharding, key) != getattr(plain, key)
        ]
    if sharding.hardware is not None:
        problems.append(
            f"sharding.hardware = '{sharding.hardware}': plans are explored for planning.hardware; "
            "set that, and leave this out"
        )
    problems += _unread(sharding, cases)
    if config.planning.replica_sync_steps is not None:
        problems += _unused_sync_steps(cases)
    names = [case.name for case in cases]
    problems += [
        f"planning.compare: found {name!r}, expected two of {', '.join(names)}"
        for name in config.planning.compare or ()
        if name not in names
    ]
    if config.planning.compare and len(set(config.planning.compare)) == 1:
        problems.append(f"planning.compare: '{config.planning.compare[0]}' stands twice")
    if problems:
        raise ConfigError.of(problems)


def _unread(sharding: ShardingConfig, cases: Sequence[PlanCase]) -> list[str]:
    """Settings of the search, of GPUs and of caches that no case reads."""
    problems, plain = [], ShardingConfig()
    if sharding.plan is not None and all(case.strategy == _OWN for case in cases):
        problems += [
            f"sharding.{key}: nothing is searched, sharding.plan is taken as it is; leave it out"
            for key in sharding.unread_beside_plan()
        ]
    if all(case.hardware.device == "cpu" for case in cases):
        if sharding.reserved_share != plain.reserved_share:
            problems.append(
                "sharding.reserved_share: nothing of a host's memory is reserved, and no "
                "planning.hardware has GPUs; leave it out"
            )
        problems += proposer_mistakes(sharding, "cpu")
    caches = [
        table
        for case in cases
        for table in case.sharding.tables.values()
        if "fused_uvm_caching" in (table.kernels or ())
    ]
    if sharding.prefetch and sharding.plan is None and not caches:
        problems.append(
            "sharding.prefetch = true: no plan that is asked for has a table with a cache to fill "
            "(sharding.tables.<entity>.kernels = ['fused_uvm_caching'], with the strategy "
            f"'{_OWN}')"
        )
    return problems


def _unused_sync_steps(cases: Sequence[PlanCase]) -> list[str]:
    """Why no case averages weights."""
    key = f"planning.replica_sync_steps = {cases[0].replica_sync_steps}"
    replicated = [case for case in cases if case.num_replicas > 1]
    if not replicated:
        return [f"{key}: there is one copy of the tables; set sharding.sharding_group_size"]
    devices = [torch.device(case.hardware.device) for case in replicated]
    pairs = zip(replicated, devices, strict=True)
    if all(needs_dense_gradients(case.optimizer, device) for case, device in pairs):
        return [f"{key}: gradients are averaged in every step here; leave it out"]
    return []


def check_constraints(workload: Workload | OutsideWorkload, cases: Sequence[PlanCase]) -> None:
    """Whether the model has the tables that [sharding] speaks of, and can be sharded so.

    Raises:
        ConfigError: a table is constrained as it cannot be, or no case fits the plan that is given.
    """
    wrong: list[ConfigError] = []
    own = [case for case in cases if case.strategy == _OWN]
    for case in own:
        problem = workload.problem(case)
        given = case.sharding.plan
        try:
            if given is None:
                table_constraints(problem)
            else:
                read_plan(given, problem)
        except ConfigError as error:
            if given is None:
                raise
            wrong.append(error)
    if wrong and len(wrong) == len(own):
        raise wrong[0]
