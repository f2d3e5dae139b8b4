"""Latency and quality of a run as Markdown, JSON and a figure."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cdp_torchrec.benchmark.latency.contestants import BASE
from cdp_torchrec.benchmark.latency.denoiser_cost import DenoiserCost, MatrixRate
from cdp_torchrec.benchmark.latency.rounds import Timing
from cdp_torchrec.text_table import markdown_table
from cdp_torchrec.undefined import shown

_PERCENTS = (50, 90, 99)
_GAUC_MARGIN = 0.0005


@dataclass(frozen=True)
class Quality:
    """Metrics of the test split at one setting of the same run."""

    name: str
    """"ddim" and "dpmpp_2m" for the run, "student" for its student."""
    num_inference_steps: int
    auc: float
    gauc: float


@dataclass(frozen=True)
class LatencyReport:
    """Everything that was measured."""

    device: str
    """In words."""
    frontier_candidates: int
    """Candidates at which the frontier is drawn."""
    timings: Sequence[Timing]
    qualities: Sequence[Quality]
    steps: dict[str, int]
    """Denoiser calls of each CDP model by its name."""
    costs: dict[str, DenoiserCost]
    """Work at frontier_candidates by the same names."""
    rate: MatrixRate

    def added_ms(self, num_inference_steps: int) -> float | None:
        """What CDP adds at a number of steps, in the last form measured."""
        names = [name for name, steps in self.steps.items() if steps == num_inference_steps]
        found = [t for t in self._of_frontier() if t.name in names]
        return found[-1].added_ms if found else None

    def call_ms(self) -> float | None:
        """One denoiser call inside the loop: what each further step adds to the fastest round."""
        form = self.timings[-1].form
        fastest = {
            self.steps[t.name]: t.times.fastest
            for t in self._of_frontier()
            if t.name in self.steps and t.form == form
        }
        few, many = min(fastest), max(fastest)
        return None if few == many else (fastest[many] - fastest[few]) / (many - few)

    def loop_rate(self) -> float | None:
        """Rate inside the denoising loop, in 1e9 floating-point operations per second."""
        call_ms = self.call_ms()
        if not call_ms or call_ms < 0.0:
            return None
        name, steps = next(iter(self.steps.items()))
        return self.costs[name].flops / steps / call_ms / 1e6

    def _of_frontier(self) -> list[Timing]:
        return [t for t in self.timings if t.num_candidates == self.frontier_candidates]


def headline(report: LatencyReport) -> str:
    """The paper's question in one line."""
    added = {steps: report.added_ms(steps) for steps in report.steps.values()}
    shown = ", ".join(f"{ms:+.3f} ms at {k} steps" for k, ms in added.items() if ms is not None)
    form = report.timings[-1].form
    return (
        f"CDP over the same tower without interest, {report.frontier_candidates} candidates, "
        f"{form}: {shown} (median)"
    )


def as_markdown(report: LatencyReport) -> str:
    """Tables of latency, work and quality."""
    parts = [
        headline(report),
        f"Milliseconds of the dense part for one request on {report.device}; added: median over "
        "alternating rounds.",
        _latency_table(report),
        _work_table(report),
        _rates(report),
    ]
    if report.qualities:
        parts += [
            "Test split, the same run at each setting; added as above.",
            _quality_table(report),
        ]
    return "\n\n".join(parts) + "\n"


def _latency_table(report: LatencyReport) -> str:
    header = ["model", "form", "candidates", *(f"p{p}" for p in _PERCENTS), "fastest", "added"]
    rows = [
        [
            t.name,
            t.form,
            str(t.num_candidates),
            *(f"{t.times.percentile(percent):.3f}" for percent in _PERCENTS),
            f"{t.times.fastest:.3f}",
            "" if t.name == BASE else f"{t.added_ms:+.3f}",
        ]
        for t in report.timings
    ]
    return markdown_table(header, rows, left=(0, 1))


def _work_table(report: LatencyReport) -> str:
    header = [f"denoiser, {report.frontier_candidates} candidates", "MFLOP", "kB"]
    rows = [
        [name, f"{cost.flops / 1e6:.2f}", f"{cost.bytes / 1e3:.1f}"]
        for name, cost in report.costs.items()
    ]
    return markdown_table(header, rows)


def _quality_table(report: LatencyReport) -> str:
    rows = []
    for q in report.qualities:
        added = report.added_ms(q.num_inference_steps)
        rows.append(
            [
                q.name,
                str(q.num_inference_steps),
                "" if added is None else f"{added:+.3f}",
                *(shown(m, digits=5) for m in (q.auc, q.gauc)),
            ]
        )
    return markdown_table(["sampler", "steps", "added ms", "AUC", "GAUC"], rows)


def _rates(report: LatencyReport) -> str:
    rate = report.rate
    lines = [
        f"torch.mm: {rate.same_shapes:.1f} GFLOP/s at the shapes of the denoiser, "
        f"{rate.large:.1f} GFLOP/s in large ones.",
    ]
    loop = report.loop_rate()
    if loop is not None:
        lines.append(
            f"Inside the denoising loop: {1e3 * (report.call_ms() or 0.0):.1f} us a call, "
            f"{loop:.1f} GFLOP/s, {loop / rate.same_shapes:.0%} of torch.mm at the same shapes, "
            f"{loop / rate.large:.0%} of the large one."
        )
    return "\n".join(lines)


def as_json(report: LatencyReport) -> dict[str, Any]:
    """The same numbers for programs."""
    return {
        "device": report.device,
        "headline": headline(report),
        "latency": [
            {"model": t.name, "form": t.form, "candidates": t.num_candidates}
            | {f"p{percent}_ms": t.times.percentile(percent) for percent in _PERCENTS}
            | {"fastest_ms": t.times.fastest, "added_ms": t.added_ms}
            for t in report.timings
        ],
        "denoiser": {
            "candidates": report.frontier_candidates,
            "cost": {name: asdict(cost) for name, cost in report.costs.items()},
            "call_ms": report.call_ms(),
            "loop_gflops": report.loop_rate(),
            "mm_same_shapes_gflops": report.rate.same_shapes,
            "mm_large_gflops": report.rate.large,
        },
        "quality": [
            asdict(q) | {"added_ms": report.added_ms(q.num_inference_steps)}
            for q in report.qualities
        ],
    }


def draw_frontier(report: LatencyReport, path: Path) -> None:
    """GAUC against added milliseconds, one line for each sampler, as PNG."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in dict.fromkeys(q.name for q in report.qualities):
        points = [
            (added, q.gauc, q.num_inference_steps)
            for q in report.qualities
            if q.name == name
            and not math.isnan(q.gauc)
            and (added := report.added_ms(q.num_inference_steps)) is not None
        ]
        if not points:
            continue
        xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
        axes.plot(xs, ys, marker="*" if name == "student" else "o", label=name, alpha=0.8)
        for x, y, k in points:
            axes.annotate(str(k), (x, y), textcoords="offset points", xytext=(4, 5), fontsize=8)
    axes.set_xlim(left=0.0)
    # Differences far below what seeds make shall not fill the figure.
    low, high = axes.get_ylim()
    axes.set_ylim(low - _GAUC_MARGIN, high + _GAUC_MARGIN)
    axes.set_xlabel(
        f"ms added over the tower without interest, {report.frontier_candidates} candidates"
    )
    axes.set_ylabel("GAUC on test")
    axes.set_title("Number of denoiser calls beside each point", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=150)
