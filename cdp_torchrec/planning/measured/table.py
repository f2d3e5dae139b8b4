"""The benchmark of sharding plans as text and as JSON."""

from collections.abc import Sequence
from typing import Any

from cdp_torchrec.planning.estimate import TableEstimate
from cdp_torchrec.planning.measured.comparison import ESTIMATES, ComparedPlan, Comparison
from cdp_torchrec.planning.measured.fit import UNFITTED, Error, Fit, Point, error
from cdp_torchrec.planning.measured.lookups import COMMUNICATION, PIECES, TableBytes
from cdp_torchrec.planning.measured.rounds import Cost

_MIB = 2**20
_DOMINATES = 0.5
_FAR_OFF = 1.5
_SMALLEST_MS = 1e-4


def as_markdown(comparison: Comparison) -> str:
    """Every plan, every table under every sharding, the fit, and what it leaves unexplained."""
    return "\n\n".join(
        [
            _heading(comparison),
            _plans(comparison),
            _tables(comparison),
            _errors(comparison),
            *_remarks(comparison),
        ]
    )


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All numbers."""
    return {
        "settings": comparison.setting.config.model_dump(mode="json"),
        "world_size": comparison.setting.world_size,
        "hardware": comparison.setting.hardware.model_dump(mode="json"),
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


def _heading(comparison: Comparison) -> str:
    setting = comparison.setting
    return (
        f"{setting.world_size} ranks ({setting.device.type}) on {setting.num_nodes} node(s), "
        f"{setting.batch_size} impressions per rank, sparse optimizer "
        f"{setting.config.optimizer.sparse.kind}. Times are ms per step, of the slowest rank; "
        "measured / estimated / estimated with the fitted bandwidths."
    )


# --- plans ---------------------------------------------------------------------------------------


def _plans(comparison: Comparison) -> str:
    lines = [
        _row("plan", "all tables", "measured one by one", "way of the ids", "MiB of a rank"),
        _row("---", *["---:"] * 4),
    ]
    for plan in sorted(comparison.plans, key=_whole_ms):
        alone = _slowest(
            [_sum(costs) for costs in zip(*plan.measured.tables.values(), strict=True)]
        )
        ids = _slowest([cost.ms["input"] for cost in plan.measured.whole])
        lines.append(
            _row(
                plan.name,
                f"{_ms(_whole_ms(plan))} / {_ms(plan.before.embedding_ms)} / "
                f"{_ms(plan.after.embedding_ms)}",
                _ms(alone),
                _ms(ids),
                f"{max(_mib(cost.bytes) for cost in plan.measured.whole):,.1f} / "
                f"{_estimated_mib(plan):,.1f}",
            )
        )
    note = (
        "All tables: without the way of the ids, which the planner leaves out of its total. "
        "Memory: weights and optimizer state of the fullest rank; activations and dense gradients "
        "are not in it."
    )
    return "\n".join([*lines, "", note])


def _whole_ms(plan: ComparedPlan) -> float:
    return _slowest([cost.total_ms - cost.ms["input"] for cost in plan.measured.whole])


def _sum(costs: Sequence[Cost]) -> float:
    return sum(cost.total_ms - cost.ms["input"] for cost in costs)


def _slowest(ranks: Sequence[float]) -> float:
    return max(ranks)


def _mib(held: TableBytes) -> float:
    return (held.weights + held.optimizer) / _MIB


def _estimated_mib(plan: ComparedPlan) -> float:
    weights, optimizer, _ = plan.before.memory_by_kind
    return float((weights + optimizer).max()) / _MIB


# --- tables --------------------------------------------------------------------------------------


def _tables(comparison: Comparison) -> str:
    lines = [
        _row("table", "rows x width", "sharding", *ESTIMATES, "ids", "MiB"),
        _row("---", "---:", "---", *["---:"] * (len(ESTIMATES) + 2)),
    ]
    shown = set()
    for plan in comparison.plans:
        for table in plan.before.tables:
            name = table.table.name
            points = {
                point.piece: point
                for point in comparison.points
                if point.table == name and plan.name in point.plans
            }
            costs = plan.measured.tables[name]
            key = (name, table.sharding_type, *(cost.total_ms for cost in costs))
            if key in shown:
                continue
            shown.add(key)
            lines.append(
                _row(
                    table.table.entity,
                    f"{table.table.num_embeddings:,} x {table.table.embedding_dim}",
                    _sharding(table),
                    *(
                        _times(points[piece], comparison.fit)
                        if piece in points
                        else f"{_ms(max(cost.ms[piece] for cost in costs))} / 0"
                        for piece in ESTIMATES
                    ),
                    _ms(max(cost.ms["input"] for cost in costs)),
                    _memory(costs),
                )
            )
    note = (
        "Each table by itself. lookup: rows read and pooled; output: embeddings to the ranks of "
        "the batch; gradient: gradients to the ranks of the rows, or of a data-parallel table the "
        "all-reduce and the optimizer; update: of the rows; ids: to the ranks of the rows. MiB: "
        "weights and optimizer state of the fullest rank, + dense gradients, which the planner "
        "does not count."
    )
    return "\n".join([*lines, "", note])


def _sharding(table: TableEstimate) -> str:
    where = f" on rank {table.ranks[0]}" if len(table.ranks) == 1 else ""
    return f"{table.sharding_type} ({table.compute_kernel}){where}"


def _times(point: Point, fit: Fit) -> str:
    return (
        f"{_ms(point.measured_ms)} / {_ms(point.estimated_ms)} / "
        f"{_ms(fit.estimate(point, fixed=False))}"
    )


def _memory(costs: Sequence[Cost]) -> str:
    gradients = max(cost.bytes.gradients for cost in costs) / _MIB
    more = f" + {gradients:,.2f}" if gradients else ""
    return f"{max(_mib(cost.bytes) for cost in costs):,.2f}{more}"


# --- the fit -------------------------------------------------------------------------------------


def _errors(comparison: Comparison) -> str:
    lines = [
        _row("error of the estimates", "points", "before", "after", "left out", "with fixed costs"),
        _row("---", *["---:"] * 5),
    ]
    groups: list[tuple[str, list[Point]]] = [
        (piece, [p for p in comparison.points if p.piece == piece]) for piece in ESTIMATES
    ]
    groups.append(("all", list(comparison.points)))
    for name, points in groups:
        if not points:
            continue
        fits = comparison.by_others
        left_out = (
            _shown(error([fits[p.sharding_type].estimate(p, fixed=False) for p in points], points))
            if fits
            else "-"
        )
        lines.append(
            _row(
                name,
                str(len(points)),
                _shown(error([UNFITTED.estimate(p, fixed=False) for p in points], points)),
                _shown(error([comparison.fit.estimate(p, fixed=False) for p in points], points)),
                left_out,
                _shown(error([comparison.fit.estimate(p, fixed=True) for p in points], points)),
            )
        )
    note = (
        "Median factor between estimate and measurement, and sum of the differences as a share of "
        "the measured time. Before and after: with the bandwidths of "
        f"{comparison.setting.hardware.name} and the fitted ones. Left out: each sharding type "
        "with bandwidths fitted on the other types. With fixed costs: plus what a piece costs "
        "however little there is to do, which the planner has no number for."
    )
    return "\n".join([*lines, "", note])


def _shown(error: Error) -> str:
    return f"x{error.factor:.2f}, {error.missed:.0%}"


def _remarks(comparison: Comparison) -> list[str]:
    """What was fitted, what was not, and why bandwidths alone do not describe the machine."""
    setting, fit = comparison.setting, comparison.fit
    lines = []
    for name in comparison.constants:
        old, new = getattr(setting.hardware, name), getattr(comparison.hardware, name)
        lines.append(
            f"{name}: {old:g} -> {new:g}"
            if name in fit.slowdown
            else f"{name}: {old:g}, kept: too few tables are large enough to show it"
        )
    if setting.num_nodes == 1:
        lines.append(f"inter_node_gb_s: {setting.hardware.inter_node_gb_s:g}, kept: one node")
    remarks = ["Bandwidths in GB/s:\n" + "\n".join(f"* {line}" for line in lines)]
    costs = ", ".join(
        f"{piece} {_ms(fit.fixed_ms[piece])}" for piece in ESTIMATES if piece in fit.fixed_ms
    )
    latency = [
        p
        for p in comparison.points
        if p.piece in fit.fixed_ms
        and fit.fixed_ms[p.piece] > _DOMINATES * fit.estimate(p, fixed=True)
    ]
    messages = [p for p in latency if p.piece in COMMUNICATION]
    if latency:
        remarks.append(
            f"Fixed costs (ms): {costs}. They are more than half of the time of {len(latency)} of "
            f"{len(comparison.points)} points, {len(messages)} of them messages: calls and "
            "latency, which no bandwidth describes, so those estimates stay too low. A plan pays "
            "them once for each sharding type, not for each table."
        )
    return [*remarks, *_biases(comparison)]


def _biases(comparison: Comparison) -> list[str]:
    """Sharding types that the fitted estimates are systematically wrong about."""
    lines = []
    for piece in ESTIMATES:
        for kind in sorted({point.sharding_type for point in comparison.points}):
            points = [p for p in comparison.points if (p.piece, p.sharding_type) == (piece, kind)]
            measured = sum(p.measured_ms for p in points)
            estimated = sum(comparison.fit.estimate(p, fixed=True) for p in points)
            if points and not 1 / _FAR_OFF < measured / estimated < _FAR_OFF:
                lines.append(
                    f"* {piece} of {kind}: measured {measured / estimated:.2f} x estimated"
                )
    if not lines:
        return []
    return [
        "The planner's formulas fit these badly, whatever the bandwidths (sums over tables, with "
        "fixed costs):\n" + "\n".join(lines)
    ]


# --- parts ---------------------------------------------------------------------------------------


def _plan_json(plan: ComparedPlan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "measured_ms": _whole_ms(plan),
        "estimated_ms": plan.before.embedding_ms,
        "fitted_ms": plan.after.embedding_ms,
        "whole": [_cost_json(cost) for cost in plan.measured.whole],
        "tables": {
            table.table.name: {
                "sharding_type": table.sharding_type,
                "compute_kernel": table.compute_kernel,
                "measured": [_cost_json(cost) for cost in plan.measured.tables[table.table.name]],
                "estimated": [vars(shard) for shard in table.shards],
            }
            for table in plan.before.tables
        },
    }


def _cost_json(cost: Cost) -> dict[str, Any]:
    return {"ms": {piece: cost.ms[piece] for piece in PIECES}, "bytes": vars(cost.bytes)}


def _ms(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= _SMALLEST_MS else "0"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
