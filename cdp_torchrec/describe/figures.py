"""The figures of the page, each as SVG text."""

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from cdp_torchrec.data.prepare.split_figures import Lengths
from cdp_torchrec.describe.gate_levels import GateLevel
from cdp_torchrec.describe.histories import AGES, Histories
from cdp_torchrec.describe.id_coverage import MINIMUM_COUNTS, Coverage
from cdp_torchrec.describe.list_order import ListOrder
from cdp_torchrec.describe.over_time import OverTime
from cdp_torchrec.metrics import MetricReport

TRAIN, TEST, MARK = "#4477aa", "#ee7733", "#222222"
_COLOURS = {"train": TRAIN, "test": TEST, "appended": "#228833"}
_WIDTH = 9.0
"""Inches"""
_FONTS = {"font.size": 9, "axes.labelsize": 9}
_NUMBERS = StrMethodFormatter("{x:,.0f}")
_MOST_PLACES = 60
"""Places that are drawn."""
_LEAST_SHOWN = 50
"""Click rates of fewer impressions are noise."""
_LEAST_SHARE = 0.02
"""So are those of places that so few lists have."""


def draw_time(splits: Mapping[str, OverTime]) -> str:
    """Click rate and impressions of each bin."""
    figure, (rate, volume) = _panels(2, 1, height=4.0, sharex=True, height_ratios=(2, 1))
    unit = ""
    for name, split in splits.items():
        bins, colour = split.bins, _COLOURS[name]
        unit = bins.unit
        moments = [datetime.fromtimestamp(start / 1000, UTC) for start in bins.starts.tolist()]
        seen = split.impressions > 0
        enough = split.impressions >= _LEAST_SHOWN
        share = np.full(bins.number, np.nan)
        share[enough] = split.clicks[enough] / split.impressions[enough]
        error = 1.96 * np.sqrt(share * (1 - share) / np.maximum(split.impressions, 1))
        rate.fill_between(
            moments, share - error, share + error, color=colour, alpha=0.2, linewidth=0
        )
        rate.plot(moments, share, color=colour, marker="o", markersize=2.5, linewidth=1, label=name)
        volume.bar(
            [m for m, s in zip(moments, seen, strict=True) if s],
            split.impressions[seen],
            width=bins.width / 86_400_000,
            align="edge",
            color=colour,
        )
    rate.set_ylabel(f"click rate per {unit}")
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(rate)
    volume.set_ylabel("impressions")
    volume.yaxis.set_major_formatter(_NUMBERS)
    locator = AutoDateLocator()
    volume.xaxis.set_major_locator(locator)
    volume.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    volume.set_xlabel("time, UTC")
    return _svg(figure, "time")


def draw_lists(lengths: Mapping[str, Lengths], orders: Mapping[str, ListOrder]) -> str:
    """Candidates of a request, click rate and weight of each place."""
    figure, (sizes, rate, weight) = _panels(1, 3, height=3.0)
    for name, found in lengths.items():
        _draw_cumulative(sizes, found, name)
    sizes.set_xlabel("candidates of a request")
    sizes.set_ylabel("share of requests with at most so many")
    sizes.set_xlim(left=0)
    for name, order in orders.items():
        places = np.arange(min(order.num_places, _MOST_PLACES))
        enough = max(_LEAST_SHOWN, _LEAST_SHARE * order.shown[0])
        places = places[order.shown[places] >= enough]
        style = {"color": _COLOURS[name], "marker": "o", "markersize": 2.5, "linewidth": 1}
        share = order.clicked[places] / order.shown[places]
        rate.plot(places + 1, share, label=name, **style)
        weight.plot(places + 1, order.lift()[places], label=name, **style)
    rate.set_ylabel("click rate")
    rate.yaxis.set_major_formatter(PercentFormatter(1))
    weight.axhline(1.0, color=MARK, linewidth=0.8, linestyle="--")
    weight.set_ylabel("clicks over those of an average place")
    for panel in (rate, weight):
        panel.set_xlabel("place in the list")
        panel.set_ylim(bottom=0)
    _legend(rate)
    return _svg(figure, "lists")


def draw_histories(splits: Mapping[str, Histories]) -> str:
    """Lengths of histories, before and behind the gate, and the time since the last behaviour."""
    figure, (lengths, ages) = _panels(1, 2, height=3.2)
    for name, split in splits.items():
        _draw_cumulative(lengths, split.lengths, name)
        if split.gated.counts.any():
            _draw_cumulative(lengths, split.gated, f"{name}, behind the gate", linestyle=":")
    lengths.set_xscale("symlog", linthresh=1)
    lengths.set_xlim(left=0)
    lengths.xaxis.set_major_formatter(_NUMBERS)
    lengths.set_xlabel("behaviours before the request")
    lengths.set_ylabel("share with at most so many")
    _legend(lengths)
    names = [*(f"< {age}" for age in AGES), "older"]
    places, width = np.arange(len(names)), 0.8 / len(splits)
    for number, (name, split) in enumerate(splits.items()):
        share = split.ages / max(split.requests, 1)
        ages.bar(places + width * number, share, width, color=_COLOURS[name], label=name)
    ages.set_xticks(places + width / 2, names, rotation=60, ha="right", rotation_mode="anchor")
    ages.set_xlabel("time from the last behaviour to the request")
    ages.set_ylabel("share of requests")
    ages.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(ages)
    return _svg(figure, "histories")


def draw_gates(levels: Sequence[GateLevel], gate: str | None) -> str:
    """Share of a history that passes, and how often nothing does, by what the gate goes by."""
    figure, (passed, empty) = _panels(1, 2, height=1.3 + 0.35 * len(levels), sharey=True)
    places = np.arange(len(levels))
    colours = [MARK if level.name == gate else TRAIN for level in levels]
    passed.barh(places, [level.pass_rate for level in levels], color=colours)
    passed.set_yticks(places, [level.name for level in levels])
    passed.invert_yaxis()
    passed.set_xlabel("share of a history that passes, mean")
    for label, (name, colour) in enumerate((("not clicked", "#bbbbbb"), ("clicked", TEST))):
        share = [level.empty[label] / max(int(level.impressions[label]), 1) for level in levels]
        empty.barh(places + 0.4 * label - 0.2, share, 0.4, color=colour, label=name)
    empty.set_xlabel("share of impressions for which nothing passes")
    for panel in (passed, empty):
        panel.set_xlim(0, 1)
        panel.xaxis.set_major_formatter(PercentFormatter(1))
    _legend(empty, beside=True)
    return _svg(figure, "gates")


def draw_coverage(curves: Mapping[str, Sequence[Coverage]], marks: Mapping[str, Coverage]) -> str:
    """Share of the test ids and of the behaviours covered, and rows, by minimum count.

    Args:
        curves: by entity, at MINIMUM_COUNTS.
        marks: by entity, at the minimum count of the starter.
    """
    figure, (test, behaviours, rows) = _panels(1, 3, height=3.6)
    values = (
        (test, "of_test", "share of the test values"),
        (behaviours, "of_behaviours", "share of the behaviours"),
        (rows, "rows", "rows of their own"),
    )
    for panel, name, title in values:
        for number, (entity, curve) in enumerate(curves.items()):
            heights = [getattr(point, name) for point in curve]
            colour = matplotlib.colormaps["tab10"](number % 10)
            panel.plot(MINIMUM_COUNTS, heights, marker=".", color=colour, label=entity)
            if entity in marks:
                mark = marks[entity]
                panel.plot(mark.min_count, getattr(mark, name), "D", color=colour, clip_on=False)
        panel.set_xscale("log")
        panel.set_xticks(MINIMUM_COUNTS, [str(minimum) for minimum in MINIMUM_COUNTS])
        panel.minorticks_off()
        most = max([*MINIMUM_COUNTS, *(mark.min_count for mark in marks.values())])
        panel.set_xlim(0.8, 1.3 * most)
        panel.set_xlabel("min_count")
        panel.set_title(title, fontsize=9)
    for panel in (test, behaviours):
        panel.set_ylim(0, 1.03)
        panel.yaxis.set_major_formatter(PercentFormatter(1))
    rows.set_yscale("symlog", linthresh=1)
    rows.set_ylim(bottom=0)
    rows.yaxis.set_major_formatter(_NUMBERS)
    _legend(rows, beside=True)
    return _svg(figure, "coverage")


def draw_ranking(single: Mapping[str, float], scorers: Mapping[str, MetricReport]) -> str:
    """GAUC of single features and of untrained scorers."""
    figure, (panel,) = _panels(1, 1, height=1.2 + 0.22 * (len(single) + len(scorers)))
    rows = [(name, gauc, None, TRAIN) for name, gauc in single.items()]
    best_first = sorted(scorers.items(), key=lambda item: -item[1].gauc)
    rows += [(name, report.gauc, report.gauc_interval, TEST) for name, report in best_first]
    for place, (_, gauc, interval, colour) in enumerate(rows):
        panel.plot([0.5, gauc], [place, place], color=colour, linewidth=1, alpha=0.5)
        panel.plot(gauc, place, "o", color=colour, markersize=5)
        if interval is not None:
            panel.plot(interval, [place, place], color=colour, linewidth=2.5)
    panel.set_yticks(range(len(rows)), [name for name, *_ in rows])
    panel.invert_yaxis()
    panel.axvline(0.5, color=MARK, linewidth=0.8)
    panel.set_xlim(min([0.45, *(row[1] for row in rows)]) - 0.02, 1.0)
    panel.set_xlabel("GAUC on the test split: blue, a single feature; orange, an untrained scorer")
    panel.grid(axis="x", alpha=0.3)
    return _svg(figure, "ranking")


def _draw_cumulative(panel: Axes, found: Lengths, name: str, linestyle: str = "-") -> None:
    total = max(int(found.counts.sum()), 1)
    steps = np.flatnonzero(found.counts)
    share = np.cumsum(found.counts)[steps] / total
    colour = _COLOURS[name.split(",")[0]]
    if len(steps):
        panel.step(
            np.append(steps[0], steps),
            np.append(0.0, share),
            where="post",
            color=colour,
            linestyle=linestyle,
            label=name,
        )
    panel.set_ylim(0, 1.02)
    panel.yaxis.set_major_formatter(PercentFormatter(1))


def _panels(
    rows: int,
    columns: int,
    *,
    height: float,
    sharex: bool = False,
    sharey: bool = False,
    height_ratios: Sequence[float] | None = None,
) -> tuple[Figure, np.ndarray]:
    with matplotlib.rc_context(_FONTS):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(
            rows, columns, squeeze=False, sharex=sharex, sharey=sharey, height_ratios=height_ratios
        ).ravel()
    for panel in panels:
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return figure, panels


def _legend(panel: Axes, *, beside: bool = False) -> None:
    if beside:
        panel.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        panel.legend(fontsize=8)


def _svg(figure: Figure, name: str) -> str:
    """The same text for the same figures: no date, and no random names."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
