"""What an exploration leaves behind: text, JSON, plan files and figures."""

from dataclasses import asdict
from typing import Any

from cdp_torchrec.distributed.plans.file import write_plan
from cdp_torchrec.planning.case import FeasiblePlan, InfeasiblePlan, PlanOutcome
from cdp_torchrec.planning.estimate import MEMORY_KINDS, TIME_KINDS, PlanEstimate
from cdp_torchrec.planning.explore import Exploration
from cdp_torchrec.planning.figures import draw_plan, draw_scaling
from cdp_torchrec.planning.text import render
from cdp_torchrec.whole_file import whole_file, write_json, write_whole


def write_exploration(exploration: Exploration) -> str:
    """Write everything into planning.output; of a case without a plan, remove an earlier one.

    Returns:
        The text.
    """
    directory = exploration.config.planning.output
    text = render(exploration)
    write_whole(directory / "plans.txt", text)
    write_json(directory / "plans.json", {o.case.name: to_json(o) for o in exploration.outcomes})
    for result in exploration.infeasible:
        for suffix in (".json", ".png"):
            (directory / f"{result.case.name}{suffix}").unlink(missing_ok=True)
    for result in exploration.feasible:
        name, found = result.case.name, result.estimate
        write_plan(directory / f"{name}.json", found.plan, found.problem)
        with whole_file(directory / f"{name}.png") as partial:
            draw_plan(result, partial)
    with whole_file(directory / "scaling.png") as partial:
        draw_scaling(exploration, partial)
    return text


def to_json(outcome: PlanOutcome) -> dict[str, Any]:
    """All numbers of a case."""
    if isinstance(outcome, InfeasiblePlan):
        return {"feasible": False, "reason": list(outcome.reason), "fixes": list(outcome.fixes)}
    found = outcome.estimate
    return {"feasible": True, **_step(outcome), **_ranks(found), "tables": _tables(found)}


def _step(result: FeasiblePlan) -> dict[str, Any]:
    found = result.estimate
    return {
        "step_ms": result.step_ms,
        "embedding_ms": found.embedding_ms,
        "dense_ms": result.dense_ms,
        "all_reduce_ms": result.all_reduce_ms,
        "fixed_ms": result.fixed_ms,
        "input_ms": result.input_ms,
        "replica_ms": result.replica_ms,
        "num_replicas": result.case.num_replicas,
        "step_range_ms": list(result.step_range_ms),
        "default_fixed_costs": list(result.case.hardware.defaults),
        "impressions_per_s": result.impressions_per_s,
        "rank_hours_per_million": result.rank_hours_per_million,
        "price_per_million": result.price_per_million,
        "critical_rank": found.critical_rank,
        "time_balance": found.time_balance,
        "memory_balance": found.memory_balance,
        "lopsided": None if result.lopsided is None else asdict(result.lopsided),
        "search_seconds": found.search_seconds,
        "num_proposals": found.num_proposals,
        "search_unimproved_ms": found.unimproved_ms,
        "search_improved_ms": found.improved_ms,
    }


def _ranks(found: PlanEstimate) -> dict[str, Any]:
    memory = dict(zip(MEMORY_KINDS, found.memory_by_kind.tolist(), strict=True))
    reserved = {k: getattr(found, f"{k}_bytes") for k in ("dense", "input", "margin", "capacity")}
    return {
        "memory_bytes_by_rank": {**memory, "host": found.host_memory.tolist()},
        "memory_bytes_of_every_rank": reserved,
        "time_ms_by_rank": dict(zip(TIME_KINDS, found.time_by_kind.tolist(), strict=True)),
    }


def _tables(found: PlanEstimate) -> dict[str, Any]:
    return {
        table.table.name: {
            "num_embeddings": table.table.num_embeddings,
            "embedding_dim": table.table.embedding_dim,
            "sharding_type": table.sharding_type,
            "compute_kernel": table.compute_kernel,
            "shards": [asdict(shard) for shard in table.shards],
        }
        for table in found.tables
    }
