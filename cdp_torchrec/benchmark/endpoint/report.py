"""What a server did under load: figures as a table, and whether all answers were right."""

import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cdp_torchrec.benchmark.endpoint.clients import Exchange
from cdp_torchrec.text_table import markdown_table


class EndpointError(RuntimeError):
    """The endpoint gave a wrong answer, or none."""

    user_error = True


@dataclass(frozen=True)
class Reload:
    """How another artifact took over; times of time.monotonic."""

    start: float
    stop: float
    answer: str
    """Status and body; "200 {}" if all went well."""


@dataclass(frozen=True, kw_only=True)
class EndpointLoad:
    """What was measured."""

    asked: Sequence[Exchange]
    attacked: Sequence[Exchange]
    reload: Reload
    exit_code: int | None
    """Of the server after SIGTERM."""
    num_candidates: float
    """Of a request, on average."""
    load_before: float
    """One-minute load average of the machine."""
    load_after: float

    def check(self) -> None:
        """Whether everything went well.

        Raises:
            EndpointError: it did not.
        """
        bad = [e for e in self.asked if e.outcome in ("wrong", "lost")]
        bad += [e for e in self.attacked if e.outcome != "right"]
        if bad or not self.reload.answer.startswith("200") or self.exit_code != 0:
            raise EndpointError(
                f"{len(bad)} answers wrong or lost {bad[:3]}, reload answered "
                f"{self.reload.answer!r}, exit code {self.exit_code}"
            )

    def as_markdown(self) -> str:
        """The figures as a table."""
        seconds = max(e.stop for e in self.asked) - min(e.start for e in self.asked)
        answered = [e for e in self.asked if e.outcome == "right"]
        reloading = [
            e for e in answered if e.stop > self.reload.start and e.start < self.reload.stop
        ]
        rows = {
            "requests per second": f"{len(answered) / seconds:,.1f}",
            "candidates per second": f"{len(answered) * self.num_candidates / seconds:,.0f}",
            "latency p50, p99, max (ms)": _milliseconds(answered),
            "the same during the reload": _milliseconds(reloading),
            "reload (s)": f"{self.reload.stop - self.reload.start:.1f}",
            "valid requests": _counted(self.asked),
            "answered by version": _listed(Counter(e.version for e in answered)),
            "malformed requests": _counted(self.attacked),
            "their statuses": _listed(Counter(e.detail for e in self.attacked)),
            "load average before, after": (
                f"{self.load_before:.1f}, {self.load_after:.1f} on {os.cpu_count()} cores"
            ),
        }
        header = (f"{seconds:.0f} s on loopback", "")
        return markdown_table(header, list(rows.items()), left=(0, 1))


def _milliseconds(exchanges: Sequence[Exchange]) -> str:
    if len(exchanges) < 2:
        return "-"
    times = sorted((e.stop - e.start) * 1000 for e in exchanges)
    p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
    return f"{statistics.median(times):.1f}, {p99:.1f}, {times[-1]:.1f}"


def _counted(exchanges: Sequence[Exchange]) -> str:
    found = Counter(e.outcome for e in exchanges)
    return _listed({n: found[n] for n in ("right", "wrong", "refused", "lost")})


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
