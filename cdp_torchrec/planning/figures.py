"""An exploration as pictures: ranks of a plan stacked by table, and scaling over world sizes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from cdp_torchrec.planning.case import FeasiblePlan
from cdp_torchrec.planning.explore import Exploration

_MOST_TABLES = 9
"""Drawn by themselves; the others together."""
_FEW_RANKS = 32
"""Up to here every rank has a bar and a tick of its own."""
_GB = 1e9
_RESERVED = {"dense and input": "dimgray", "margin": "lightgray"}


def draw_plan(result: FeasiblePlan, path: Path) -> None:
    """Memory and time of every rank, stacked by table, as PNG."""
    found = result.estimate
    names = [table.table.entity for table in found.tables]
    share = found.memory_by_table.sum(1) / max(1.0, found.memory_by_table.sum())
    share = share + found.time_by_table.sum(1) / max(1e-9, found.time_by_table.sum())
    order = np.argsort(-share)
    shown, rest = order[:_MOST_TABLES], order[_MOST_TABLES:]
    labels = [names[row] for row in shown] + ([f"{len(rest)} more tables"] if len(rest) else [])
    colours = [colormaps["tab10"](index) for index in range(len(labels))]

    def grouped(values: np.ndarray) -> np.ndarray:
        parts = [values[row] for row in shown]
        return np.array(parts + ([values[rest].sum(0)] if len(rest) else []))

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    memory, time = figure.subplots(2, 1, sharex=True)
    reserved = np.array([[found.dense_bytes + found.input_bytes], [found.margin_bytes]])
    _stack(
        memory,
        np.concatenate(
            [grouped(found.memory_by_table), reserved.repeat(found.problem.world_size, 1)]
        )
        / _GB,
        [*colours, *_RESERVED.values()],
        [*labels, *_RESERVED],
    )
    memory.axhline(found.capacity_bytes / _GB, color="black", linestyle="--", linewidth=1)
    memory.set_ylabel("memory, GB (dashed: the device)")
    memory.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    _stack(time, grouped(found.time_by_table), colours, labels)
    time.set_ylabel("time of the tables, ms per step")
    time.set_xlabel("rank")
    figure.suptitle(f"{result.case.name}: estimated, critical rank {found.critical_rank}")
    figure.savefig(path, format="png", dpi=120)


def _stack(
    panel: Axes, values: np.ndarray, colours: Sequence[object], labels: Sequence[str]
) -> None:
    ranks = np.arange(values.shape[1])
    bottom = np.zeros(values.shape[1])
    for row, colour, label in zip(values, colours, labels, strict=True):
        top = bottom + row
        if len(ranks) <= _FEW_RANKS:
            panel.bar(ranks, row, bottom=bottom, width=0.8, color=colour, label=label)
        else:
            edges = np.arange(len(ranks) + 1) - 0.5
            panel.stairs(top, edges, baseline=bottom, fill=True, color=colour, label=label)
        bottom = top
    panel.set_xlim(-0.5, len(ranks) - 0.5)
    if len(ranks) <= _FEW_RANKS:
        panel.set_xticks(ranks)
    panel.grid(axis="y", alpha=0.3)


def draw_scaling(exploration: Exploration, path: Path) -> None:
    """Step time, throughput, cost and memory as PNG: over world sizes, or beside each other."""
    lines: dict[str, list[FeasiblePlan]] = {}
    for result in exploration.feasible:
        name = f"{result.case.hardware_name} {result.case.strategy}"
        lines.setdefault(name, []).append(result)
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2).ravel()
    sizes = sorted(exploration.config.planning.world_sizes)
    for panel, (title, value) in zip(panels, _PANELS, strict=True):
        if len(sizes) == 1:
            _bars(panel, {name: value(result) for name, (result,) in lines.items()})
        else:
            for index, (name, results) in enumerate(lines.items()):
                ranks = [result.case.world_size for result in results]
                colour = colormaps["tab10"](index % 10)
                panel.plot(ranks, [value(r) for r in results], marker="o", color=colour, label=name)
            _log_axes(panel, sizes)
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3, which="both")
    if lines and len(sizes) > 1:
        panels[0].legend(fontsize=8)
    what = f"{sizes[0]} ranks" if len(sizes) == 1 else "scaling, both axes logarithmic"
    figure.suptitle(f"Estimated: {what}; what is missing has no plan")
    figure.savefig(path, format="png", dpi=120)


_PANELS: tuple[tuple[str, Callable[[FeasiblePlan], float]], ...] = (
    ("step, ms", lambda result: result.step_ms),
    ("impressions per second", lambda result: result.impressions_per_s),
    ("rank-hours per million impressions", lambda result: result.rank_hours_per_million),
    (
        "share of the device's memory on the fullest rank",
        lambda result: result.rank_bytes / result.estimate.capacity_bytes,
    ),
)


def _bars(panel: Axes, values: Mapping[str, float]) -> None:
    colours = [colormaps["tab10"](index % 10) for index in range(len(values))]
    bars = panel.barh(list(values), list(values.values()), color=colours)
    panel.bar_label(bars, fmt="{:.4g}", padding=3, fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.2)


def _log_axes(panel: Axes, sizes: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.7)))
    panel.tick_params(which="minor", labelsize=6)
    panel.set_xlabel("ranks")
