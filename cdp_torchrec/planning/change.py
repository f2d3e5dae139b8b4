"""Cases with other settings, planned before anybody is told of them."""

from collections.abc import Iterable
from dataclasses import replace

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.config import TableShardingConfig
from cdp_torchrec.planning.case import PlanCase
from cdp_torchrec.planning.estimate import PlanEstimate
from cdp_torchrec.planning.estimator import estimate
from cdp_torchrec.planning.outside import OutsideWorkload
from cdp_torchrec.planning.workload import Workload

_SEARCH_SECONDS = 10


def constrained(
    case: PlanCase, entities: Iterable[str], constraint: TableShardingConfig
) -> PlanCase:
    """The case with one constraint for some tables."""
    tables = {**case.sharding.tables, **dict.fromkeys(entities, constraint)}
    return replace(case, sharding=case.sharding.model_copy(update={"tables": tables}))


def plan_changed(workload: Workload | OutsideWorkload, changed: PlanCase) -> PlanEstimate | None:
    """The plan that a short search finds; None if the settings are wrong, or nothing fits.

    TorchRec's planner takes some plans that do not: it leaves dense gradients out.
    """
    sharding = changed.sharding.model_copy(update={"search_seconds": _SEARCH_SECONDS})
    try:
        found = estimate(workload.problem(replace(changed, sharding=sharding)))
    except ConfigError:
        return None
    return found if found.rank_bytes <= found.capacity_bytes else None
