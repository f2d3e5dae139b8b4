"""Measured beside estimated: points for the fit, and the hardware that it finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import ValidationError
from torchrec.distributed.types import ShardingPlan

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.hardware import HardwareConfig
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.planning.estimate import PlanEstimate, TableEstimate
from cdp_torchrec.planning.estimator import estimate_plan
from cdp_torchrec.planning.measured.fit import Fit, Point, fit, fit_by_others
from cdp_torchrec.planning.measured.job import MeasuredJob
from cdp_torchrec.planning.measured.measurement import MeasuredPlan
from cdp_torchrec.planning.measured.sharded_tables import COMMUNICATION, Piece

ESTIMATES: Mapping[Piece, tuple[str, ...]] = {
    "lookup": ("lookup_ms", "prefetch_ms"),
    "output": ("forward_communication_ms",),
    "gradient": ("backward_communication_ms",),
    "update": ("backward_ms", "optimizer_ms"),
}
"""The planner's estimate of each piece. It leaves the way of the ids out of its total."""
_BUMP = 1.01
_SMALLEST_MS = 1e-3
_FITTED = " (fitted)"


@dataclass(frozen=True)
class ComparedPlan:
    """A plan, measured and estimated."""

    name: str
    measured: MeasuredPlan
    before: PlanEstimate
    after: PlanEstimate
    """With the fitted bandwidths."""

    @property
    def measured_ms(self) -> float:
        """Of a step of all tables on the slowest rank, to be set beside the estimates."""
        return max(step.ms_without_ids for step in self.measured.whole)


@dataclass(frozen=True)
class Comparison:
    """All plans, and what the fit makes of them."""

    job: MeasuredJob
    plans: tuple[ComparedPlan, ...]
    points: tuple[Point, ...]
    """Each sharding of a table once, however many plans share it."""
    constants: tuple[str, ...]
    """Keys of the hardware that were to be fitted."""
    fit: Fit
    by_others: Mapping[str, Fit]
    """By sharding type: a fit that has not seen it."""
    hardware: HardwareConfig
    """With the fitted bandwidths."""


def compare(job: MeasuredJob, measured: Mapping[str, MeasuredPlan]) -> Comparison:
    """Set measurements beside estimates, and fit the bandwidths.

    Args:
        job: what was measured.
        measured: by name of the plan.

    Raises:
        ConfigError: a fitted bandwidth is absurd.
    """
    problem = job.problem
    memory = f"{'device' if problem.device == 'cuda' else 'host'}_bandwidth_gb_s"
    constants = [memory, *(["intra_node_gb_s"] if problem.world_size > 1 else [])]
    if job.num_nodes > 1:
        constants.append("inter_node_gb_s")
    points = _points(problem, measured, constants)
    found = fit(points, constants)
    hardware = _fitted(problem.hardware, found, problem.world_size)
    return Comparison(
        job=job,
        plans=tuple(
            ComparedPlan(
                name=name,
                measured=plan,
                before=estimate_plan(problem, plan.plan),
                after=estimate_plan(replace(problem, hardware=hardware), plan.plan),
            )
            for name, plan in measured.items()
        ),
        points=tuple(points),
        constants=tuple(constants),
        fit=found,
        by_others=fit_by_others(points, constants),
        hardware=hardware,
    )


def estimated_ms(table: TableEstimate, piece: Piece, world_size: int) -> np.ndarray:
    """Estimate of a piece of the work with a table, [ranks]."""
    by_rank = np.zeros(world_size)
    for shard in table.shards:
        by_rank[shard.rank] += sum(getattr(shard, name) for name in ESTIMATES[piece])
    return by_rank


def _points(
    problem: PlanProblem, measured: Mapping[str, MeasuredPlan], constants: Sequence[str]
) -> list[Point]:
    found: dict[tuple, Point] = {}
    for name, plan in measured.items():
        base, *bumped = _estimates(problem, plan.plan, constants)
        for place, table in enumerate(base.tables):
            steps = plan.tables[table.table.name]
            for piece in ESTIMATES:
                by_rank = estimated_ms(table, piece, problem.world_size)
                rank = int(by_rank.argmax())
                if by_rank[rank] == 0:
                    continue
                # A part in 1 / bandwidth shrinks to 1 / bump of itself.
                parts = {
                    constant: max(0.0, float(by_rank[rank] - less) * _BUMP / (_BUMP - 1))
                    for constant, other in zip(constants, bumped, strict=True)
                    for less in [estimated_ms(other.tables[place], piece, problem.world_size)[rank]]
                }
                parts["other"] = max(0.0, float(by_rank[rank]) - sum(parts.values()))
                point = Point(
                    table=table.table.name,
                    sharding_type=table.sharding_type,
                    compute_kernel=table.compute_kernel,
                    plans=(name,),
                    piece=piece,
                    measured_ms=max(step.ms[piece] for step in steps),
                    parts_ms=parts,
                )
                key = (point.table, point.sharding_type, point.piece, point.measured_ms)
                if key in found:
                    point = replace(point, plans=(*found[key].plans, name))
                found[key] = point
    return list(found.values())


def _estimates(
    problem: PlanProblem, plan: ShardingPlan, constants: Sequence[str]
) -> list[PlanEstimate]:
    """As it is, and with each bandwidth a little higher."""
    hardware = problem.hardware
    faster = [
        hardware.model_copy(update={name: getattr(hardware, name) * _BUMP}) for name in constants
    ]
    return [estimate_plan(replace(problem, hardware=some), plan) for some in [hardware, *faster]]


def _fixed_costs(hardware: HardwareConfig, found: Fit, world_size: int) -> dict[str, float]:
    """What the fit has found of the costs that a plan pays once for each sharding type."""
    pieces = found.fixed_ms
    costs = {"lookup_us": pieces.get("lookup", 0.0) + pieces.get("update", 0.0)}
    if world_size > 1:
        sent = [pieces[name] for name in COMMUNICATION if name in pieces]
        messages = (world_size - 1) * hardware.fixed_cost("message_us") / 1e3
        collective = sum(sent) / max(1, len(sent))
        if _SMALLEST_MS < collective <= messages + _SMALLEST_MS:
            # Faster than the messages alone were taken for.
            costs["message_us"] = (collective - _SMALLEST_MS) / (world_size - 1)
            messages = collective - _SMALLEST_MS
        costs["collective_us"] = collective - messages
    return {name: float(f"{1e3 * ms:.3g}") for name, ms in costs.items() if ms > _SMALLEST_MS}


def _fitted(hardware: HardwareConfig, found: Fit, world_size: int) -> HardwareConfig:
    bandwidths = {
        name: float(f"{getattr(hardware, name) / factor:.4g}")
        for name, factor in found.slowdown.items()
    }
    name = f"{hardware.name.removesuffix(_FITTED)}{_FITTED}"
    fields = hardware.model_dump(exclude_none=True) | bandwidths | {"name": name}
    fields |= _fixed_costs(hardware, found, world_size)
    try:
        return HardwareConfig.model_validate(fields)
    except ValidationError as error:
        reasons = "; ".join(mistake["msg"] for mistake in error.errors())
        raise ConfigError(
            f"the fitted bandwidths are absurd: {reasons}. The tables are too small to show them: "
            "raise benchmark.rows, model.embedding_dim or trainer.global_batch_size"
        ) from error
