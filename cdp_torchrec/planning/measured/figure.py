"""Measured against estimated time, before and after the fit, as a picture."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cdp_torchrec.planning.measured.comparison import Comparison
from cdp_torchrec.planning.measured.fit import UNFITTED, Fit
from cdp_torchrec.planning.measured.sharded_tables import Piece

_COLOURS: dict[Piece, str] = {
    "lookup": "tab:blue",
    "output": "tab:orange",
    "gradient": "tab:red",
    "update": "tab:green",
}
_MARKERS = {
    "table_wise": "o",
    "row_wise": "s",
    "column_wise": "^",
    "table_row_wise": "D",
    "table_column_wise": "v",
    "grid_shard": "P",
    "data_parallel": "x",
}


def draw_estimates(comparison: Comparison, path: Path) -> None:
    """Write the figure as PNG: a point for each piece of the work with each table.

    Args:
        comparison: measurements and fit.
        path: the file.
    """
    panels = (
        ("as planned", UNFITTED, False),
        ("fitted bandwidths", comparison.fit, False),
        ("fitted bandwidths + fixed costs", comparison.fit, True),
    )
    figure = Figure(figsize=(14, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    for panel, (title, fit, fixed) in zip(axes, panels, strict=True):
        _draw_panel(panel, comparison, fit, fixed=fixed)
        panel.set_title(title)
        panel.set_xlabel("estimated, ms per step")
    axes[0].set_ylabel("measured, ms per step")
    types = {point.sharding_type for point in comparison.points}
    handles = [
        Line2D([], [], linestyle="", marker="o", color=colour, label=piece)
        for piece, colour in _COLOURS.items()
    ] + [
        Line2D([], [], linestyle="", marker=marker, color="black", fillstyle="none", label=kind)
        for kind, marker in _MARKERS.items()
        if kind in types
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    problem = comparison.job.problem
    figure.suptitle(
        f"{problem.world_size} ranks ({problem.device}), {problem.batch_size} impressions per "
        "rank: each table by itself; grey: within a factor of 2"
    )
    figure.savefig(path, format="png", dpi=150)


def _draw_panel(panel: Axes, comparison: Comparison, fit: Fit, *, fixed: bool) -> None:
    times = [p.measured_ms for p in comparison.points]
    times += [p.estimated_ms for p in comparison.points]
    ends = (min(times) / 2, max(times) * 2)
    panel.fill_between(ends, [e / 2 for e in ends], [e * 2 for e in ends], color="0.92", zorder=0)
    panel.plot(ends, ends, color="0.6", linewidth=1, zorder=1)
    for point in comparison.points:
        marker = _MARKERS[point.sharding_type]
        colour = _COLOURS[point.piece]
        panel.scatter(
            [fit.estimate(point, fixed=fixed)],
            [point.measured_ms],
            marker=marker,
            s=28,
            linewidths=1.2,
            edgecolors=None if marker == "x" else colour,
            facecolors=colour if marker == "x" else "none",
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(ends)
    panel.set_ylim(ends)
    panel.grid(alpha=0.3)
