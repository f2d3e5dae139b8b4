"""Files that the benchmark of sharding plans leaves behind."""

from pathlib import Path
from typing import Any

import tomli_w

from cdp_torchrec.planning.measured.comparison import ComparedPlan, Comparison
from cdp_torchrec.planning.measured.figure import draw_estimates
from cdp_torchrec.planning.measured.job import FITTED
from cdp_torchrec.planning.measured.measurement import MeasuredStep
from cdp_torchrec.planning.measured.sharded_tables import PIECES
from cdp_torchrec.planning.measured.text import as_markdown
from cdp_torchrec.whole_file import whole_file, write_json, write_whole


def write_outputs(comparison: Comparison) -> None:
    """Write the files that the configuration asks for; on one rank."""
    config = comparison.job.config.benchmark
    if config.output is not None:
        write_whole(config.output / "plans.md", as_markdown(comparison) + "\n")
        write_json(config.output / "plans.json", as_json(comparison))
        with whole_file(config.output / "plans.png") as partial:
            draw_estimates(comparison, partial)
    if config.output_hardware is not None:
        write_hardware(comparison, config.output_hardware)


def write_hardware(comparison: Comparison, path: Path) -> None:
    """Write the hardware with the fitted bandwidths, for sharding.hardware.

    Args:
        comparison: what was fitted, and where.
        path: the file.
    """
    job, problem = comparison.job, comparison.job.problem
    before = problem.hardware.model_dump()
    found = {key for key, value in comparison.hardware if value != before[key]} - {"name"}
    found |= comparison.fit.slowdown.keys()
    fitted = ", ".join(key for key in before if key in found) or "nothing"
    origin = (
        f"{FITTED}: {fitted}.\n"
        f"# Measured on {problem.world_size} ranks of {job.num_nodes} node(s), "
        f"{problem.batch_size} impressions per rank, sparse optimizer "
        f"{problem.optimizer.kind}. The rest is not measured.\n"
    )
    values = comparison.hardware.model_dump(mode="json", exclude_none=True)
    write_whole(path, origin + tomli_w.dumps(values))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All numbers."""
    return {
        "settings": comparison.job.config.model_dump(mode="json"),
        "world_size": comparison.job.problem.world_size,
        "hardware": comparison.job.problem.hardware.model_dump(mode="json"),
        "fitted_hardware": comparison.hardware.model_dump(mode="json"),
        "fixed_ms": dict(comparison.fit.fixed_ms),
        "plans": [_plan_json(plan) for plan in comparison.plans],
        "points": [
            {
                **vars(point),
                "parts_ms": dict(point.parts_ms),
                "estimated_ms": point.estimated_ms,
                "fitted_ms": comparison.fit.estimate(point, fixed=False),
                "fitted_with_fixed_ms": comparison.fit.estimate(point, fixed=True),
            }
            for point in comparison.points
        ],
    }


def _plan_json(plan: ComparedPlan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "measured_ms": plan.measured_ms,
        "estimated_ms": plan.before.embedding_ms,
        "fitted_ms": plan.after.embedding_ms,
        "whole": [_step_json(step) for step in plan.measured.whole],
        "tables": {
            table.table.name: {
                "sharding_type": table.sharding_type,
                "compute_kernel": table.compute_kernel,
                "measured": [_step_json(step) for step in plan.measured.tables[table.table.name]],
                "estimated": [vars(shard) for shard in table.shards],
            }
            for table in plan.before.tables
        },
    }


def _step_json(step: MeasuredStep) -> dict[str, Any]:
    return {"ms": {piece: step.ms[piece] for piece in PIECES}, "bytes": vars(step.memory)}
