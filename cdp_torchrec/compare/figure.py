"""Pictures: GAUC of every row with its interval, one panel for each table; and gains."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cdp_torchrec.compare.gains import Panel
from cdp_torchrec.compare.summary import CONFIDENCE, Summary

_COLOURS = {
    "untrained": "tab:gray",
    "floor": "tab:blue",
    "baseline": "tab:green",
    "reference": "tab:red",
}


def draw_gauc(summaries: Sequence[Summary], path: Path) -> None:
    """Write the figure as PNG.

    Args:
        summaries: the groups and datasets; those without rows have no panel.
        path: the file.
    """
    drawn = [summary for summary in summaries if summary.rows]
    if not drawn:
        return
    height = 1.2 + 0.28 * max(len(summary.rows) for summary in drawn)
    figure = Figure(figsize=(5.5 * len(drawn), height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for panel, summary in zip(panels, drawn, strict=True):
        _draw_panel(panel, summary)
    figure.savefig(path, format="png", dpi=150)


def _draw_panel(panel: Axes, summary: Summary) -> None:
    for place, row in enumerate(summary.rows):
        measured = row.measured["gauc"]
        low, high = measured.interval(CONFIDENCE)
        panel.errorbar(
            [measured.mean],
            [place],
            xerr=[[measured.mean - low], [high - measured.mean]],
            fmt="o",
            markersize=4,
            capsize=2,
            color=_COLOURS[row.kind],
        )
    panel.set_yticks(range(len(summary.rows)), [row.name for row in summary.rows])
    panel.invert_yaxis()
    panel.set_xlabel(f"GAUC on test, {CONFIDENCE:.0%} interval over users and seeds")
    panel.set_title(summary.name)
    panel.grid(axis="x", alpha=0.3)


def draw_gains(panels: Sequence[Panel], path: Path) -> None:
    """Write the figure of gains as PNG.

    Args:
        panels: at least one.
        path: the file.
    """
    figure = Figure(figsize=(5.0 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_gains(axes, panel)
    figure.savefig(path, format="png", dpi=150)


def _draw_gains(axes: Axes, panel: Panel) -> None:
    axes.axhline(0.0, color="tab:gray", linewidth=0.8)
    for base, points in panel.curves.items():
        axes.errorbar(
            [point.place for point in points],
            [point.gain.mean for point in points],
            yerr=[
                [point.gain.mean - point.gain.low for point in points],
                [point.gain.high - point.gain.mean for point in points],
            ],
            marker="o",
            markersize=4,
            capsize=2,
            label=f"over {base}",
        )
    if panel.is_logarithmic:
        axes.set_xscale("log")
    labels = {point.place: point.label for points in panel.curves.values() for point in points}
    axes.set_xticks(list(labels), list(labels.values()))
    axes.minorticks_off()
    axes.set_xlabel(panel.axis)
    axes.set_ylabel(f"gain in GAUC, {CONFIDENCE:.0%} interval")
    axes.set_title(panel.title)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
