"""What an exploration leaves behind: text, JSON, plan files and figures."""

from dataclasses import asdict
from typing import Any

from cdp_torchrec.distributed.plans.file import write_plan
from cdp_torchrec.planning.cell import FeasibleCell, InfeasibleCell
from cdp_torchrec.planning.estimate import MEMORY_KINDS, TIME_KINDS
from cdp_torchrec.planning.explore import CellResult, Exploration
from cdp_torchrec.planning.figures import draw_plan, draw_scaling
from cdp_torchrec.planning.text import render
from cdp_torchrec.whole_file import whole_file, write_json, write_whole


def write_exploration(exploration: Exploration) -> str:
    """Write everything into planning.output.

    Returns:
        The text.
    """
    directory = exploration.config.output
    text = render(exploration)
    write_whole(directory / "plans.txt", text)
    write_json(directory / "plans.json", {r.cell.name: to_json(r) for r in exploration.results})
    for result in exploration.feasible:
        write_plan(
            directory / f"{result.cell.name}.json",
            result.plan.plan,
            [table.table for table in result.plan.tables],
            world_size=result.plan.world_size,
            local_world_size=result.plan.local_world_size,
            device=result.cell.hardware.device,
        )
        with whole_file(directory / f"{result.cell.name}.png") as partial:
            draw_plan(result, partial)
    with whole_file(directory / "scaling.png") as partial:
        draw_scaling(exploration, partial)
    return text


def to_json(result: CellResult) -> dict[str, Any]:
    """All numbers of a cell."""
    if isinstance(result, InfeasibleCell):
        return {"feasible": False, "reason": list(result.reason), "fixes": list(result.fixes)}
    return {"feasible": True, **_step(result), **_ranks(result), "tables": _tables(result)}


def _step(result: FeasibleCell) -> dict[str, Any]:
    plan = result.plan
    return {
        "step_ms": result.step_ms,
        "embedding_ms": plan.embedding_ms,
        "dense_ms": result.dense_ms,
        "all_reduce_ms": result.all_reduce_ms,
        "impressions_per_s": result.impressions_per_s,
        "rank_hours_per_million": result.rank_hours_per_million,
        "price_per_million": result.price_per_million,
        "critical_rank": plan.critical_rank,
        "time_balance": plan.time_balance,
        "memory_balance": plan.memory_balance,
        "search_seconds": plan.search_seconds,
        "num_proposals": plan.num_proposals,
    }


def _ranks(result: FeasibleCell) -> dict[str, Any]:
    plan = result.plan
    memory = dict(zip(MEMORY_KINDS, plan.memory_by_kind.tolist(), strict=True))
    reserved = {k: getattr(plan, f"{k}_bytes") for k in ("dense", "input", "margin", "capacity")}
    return {
        "memory_bytes_by_rank": {**memory, "host": plan.host_memory.tolist()},
        "memory_bytes_of_every_rank": reserved,
        "time_ms_by_rank": dict(zip(TIME_KINDS, plan.time_by_kind.tolist(), strict=True)),
    }


def _tables(result: FeasibleCell) -> dict[str, Any]:
    return {
        table.table.name: {
            "num_embeddings": table.table.num_embeddings,
            "embedding_dim": table.table.embedding_dim,
            "sharding_type": table.sharding_type,
            "compute_kernel": table.compute_kernel,
            "shards": [asdict(shard) for shard in table.shards],
        }
        for table in result.plan.tables
    }
