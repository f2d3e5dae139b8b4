"""The table as a picture: GAUC of every row with its interval, one panel for each table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
        # The percentile interval of a replicated mean need not be around the mean.
        around = np.maximum([[measured.mean - low], [high - measured.mean]], 0.0)
        panel.errorbar(
            [measured.mean],
            [place],
            xerr=around,
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
