"""The benchmark of sharding plans as text."""

from collections.abc import Sequence

from cdp_torchrec.planning.estimate import TableEstimate
from cdp_torchrec.planning.measured.comparison import ESTIMATES, ComparedPlan, Comparison
from cdp_torchrec.planning.measured.fit import UNFITTED, Error, Fit, Point, error
from cdp_torchrec.planning.measured.measurement import MeasuredStep
from cdp_torchrec.planning.measured.sharded_tables import COMMUNICATION, Piece, TableBytes
from cdp_torchrec.text_table import markdown_table

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


def _heading(comparison: Comparison) -> str:
    job, problem = comparison.job, comparison.job.problem
    return (
        f"{problem.world_size} ranks ({problem.device}) on {job.num_nodes} node(s), "
        f"{problem.batch_size} impressions per rank, sparse optimizer "
        f"{problem.optimizer.kind}. Times are ms per step, of the slowest rank; "
        "measured / estimated / estimated with the fitted bandwidths."
    )


def _plans(comparison: Comparison) -> str:
    rows = []
    for plan in sorted(comparison.plans, key=lambda plan: plan.measured_ms):
        every = zip(*plan.measured.tables.values(), strict=True)
        alone = max(sum(step.ms_without_ids for step in steps) for steps in every)
        rows.append(
            [
                plan.name,
                f"{_ms(plan.measured_ms)} / {_ms(plan.before.embedding_ms)} / "
                f"{_ms(plan.after.embedding_ms)}",
                _ms(alone),
                _slowest(plan.measured.whole, "input"),
                f"{max(_mib(step.memory) for step in plan.measured.whole):,.1f} / "
                f"{_estimated_mib(plan):,.1f}",
            ]
        )
    header = ["plan", "all tables", "measured one by one", "way of the ids", "MiB of a rank"]
    note = (
        "All tables: without the way of the ids, which the planner leaves out of its total. "
        "Memory: weights and optimizer state of the fullest rank; activations and dense gradients "
        "are not in it."
    )
    return f"{markdown_table(header, rows)}\n\n{note}"


def _slowest(steps: Sequence[MeasuredStep], piece: Piece) -> str:
    return _ms(max(step.ms[piece] for step in steps))


def _mib(held: TableBytes) -> float:
    return (held.weights + held.optimizer) / _MIB


def _estimated_mib(plan: ComparedPlan) -> float:
    weights, optimizer, _ = plan.before.memory_by_kind
    return float((weights + optimizer).max()) / _MIB


def _tables(comparison: Comparison) -> str:
    rows, shown = [], set()
    for plan in comparison.plans:
        for table in plan.before.tables:
            steps = plan.measured.tables[table.table.name]
            key = (table.table.name, table.sharding_type, *(step.total_ms for step in steps))
            if key not in shown:
                shown.add(key)
                rows.append(_table_row(comparison, plan, table))
    header = ["table", "rows x width", "sharding", *ESTIMATES, "ids", "MiB"]
    note = (
        "Each table by itself. lookup: rows read and pooled; output: embeddings to the ranks of "
        "the batch; gradient: gradients to the ranks of the rows, or of a data-parallel table the "
        "all-reduce and the optimizer; update: of the rows; ids: to the ranks of the rows. MiB: "
        "weights and optimizer state of the fullest rank, + dense gradients, which the planner "
        "does not count."
    )
    return f"{markdown_table(header, rows, left=(0, 2))}\n\n{note}"


def _table_row(comparison: Comparison, plan: ComparedPlan, table: TableEstimate) -> list[str]:
    name = table.table.name
    steps = plan.measured.tables[name]
    points = {
        point.piece: point
        for point in comparison.points
        if point.table == name and plan.name in point.plans
    }
    return [
        table.table.entity,
        f"{table.table.num_embeddings:,} x {table.table.embedding_dim}",
        _sharding(table),
        *(
            _times(points[piece], comparison.fit)
            if piece in points
            else f"{_slowest(steps, piece)} / 0"
            for piece in ESTIMATES
        ),
        _slowest(steps, "input"),
        _memory(steps),
    ]


def _sharding(table: TableEstimate) -> str:
    where = f" on rank {table.ranks[0]}" if len(table.ranks) == 1 else ""
    return f"{table.sharding_type} ({table.compute_kernel}){where}"


def _times(point: Point, fit: Fit) -> str:
    return (
        f"{_ms(point.measured_ms)} / {_ms(point.estimated_ms)} / "
        f"{_ms(fit.estimate(point, fixed=False))}"
    )


def _memory(steps: Sequence[MeasuredStep]) -> str:
    gradients = max(step.memory.gradients for step in steps) / _MIB
    more = f" + {gradients:,.2f}" if gradients else ""
    return f"{max(_mib(step.memory) for step in steps):,.2f}{more}"


def _errors(comparison: Comparison) -> str:
    points, fit, others = comparison.points, comparison.fit, comparison.by_others
    groups = [(piece, [p for p in points if p.piece == piece]) for piece in ESTIMATES]
    rows = [
        [
            name,
            str(len(some)),
            _shown(error([UNFITTED.estimate(p, fixed=False) for p in some], some)),
            _shown(error([fit.estimate(p, fixed=False) for p in some], some)),
            _shown(error([others[p.sharding_type].estimate(p, fixed=False) for p in some], some))
            if others
            else "-",
            _shown(error([fit.estimate(p, fixed=True) for p in some], some)),
        ]
        for name, some in [*groups, ("all", [*points])]
        if some
    ]
    header = ["error of the estimates", "points", "before", "after", "left out", "with fixed costs"]
    note = (
        "Median factor between estimate and measurement, and sum of the differences as a share of "
        "the measured time. Before and after: with the bandwidths of "
        f"{comparison.job.problem.hardware.name} and the fitted ones. Left out: each sharding type "
        "with bandwidths fitted on the other types. With fixed costs: plus what a piece costs "
        "however little there is to do, which the planner has no number for."
    )
    return f"{markdown_table(header, rows)}\n\n{note}"


def _shown(error: Error) -> str:
    return f"x{error.factor:.2f}, {error.missed:.0%}"


def _remarks(comparison: Comparison) -> list[str]:
    """What was fitted, what was not, and why bandwidths alone do not describe the machine."""
    return [*_bandwidths(comparison), *_fixed_costs(comparison), *_biases(comparison)]


def _bandwidths(comparison: Comparison) -> list[str]:
    before, after = comparison.job.problem.hardware, comparison.hardware
    lines = [
        f"{name}: {getattr(before, name):g} -> {getattr(after, name):g}"
        if name in comparison.fit.slowdown
        else f"{name}: {getattr(before, name):g}, kept: too few tables are large enough to show it"
        for name in comparison.constants
    ]
    if comparison.job.num_nodes == 1:
        lines.append(f"inter_node_gb_s: {before.inter_node_gb_s:g}, kept: one node")
    return ["Bandwidths in GB/s:\n" + "\n".join(f"* {line}" for line in lines)]


def _fixed_costs(comparison: Comparison) -> list[str]:
    fit = comparison.fit
    dominated = [
        p
        for p in comparison.points
        if p.piece in fit.fixed_ms
        and fit.fixed_ms[p.piece] > _DOMINATES * fit.estimate(p, fixed=True)
    ]
    if not dominated:
        return []
    messages = [p for p in dominated if p.piece in COMMUNICATION]
    costs = ", ".join(
        f"{piece} {_ms(fit.fixed_ms[piece])}" for piece in ESTIMATES if piece in fit.fixed_ms
    )
    return [
        f"Fixed costs (ms): {costs}. They are more than half of the time of {len(dominated)} of "
        f"{len(comparison.points)} points, {len(messages)} of them messages: calls and "
        "latency, which no bandwidth describes. A plan pays them once for each sharding type, not "
        "for each table: so the explorer adds them, as lookup_us and collective_us of the fitted "
        "hardware, to a step and not to its tables."
    ]


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


def _ms(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= _SMALLEST_MS else "0"
