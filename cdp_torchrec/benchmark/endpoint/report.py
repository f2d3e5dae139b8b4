"""What a server did under load: figures as a table, and whether all answers were right."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cdp_torchrec.benchmark.endpoint.attacks import Siege
from cdp_torchrec.benchmark.endpoint.clients import Exchange
from cdp_torchrec.benchmark.endpoint.one_request import RequestCost
from cdp_torchrec.text_table import markdown_table
from cdp_torchrec.timer import Times
from cdp_torchrec.user_error import UserError


class EndpointError(UserError, RuntimeError):
    """The endpoint gave a wrong answer, or none."""


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
    sieges: Sequence[Siege]
    """None, then each attack."""
    reload: Reload
    alone: RequestCost
    """Of a request without the server."""
    server_cpu_s: float
    """Processor seconds of the server while it was asked, reload included."""
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
        bad += [e for s in self.sieges for e in s.asked if e.outcome in ("wrong", "lost")]
        bad += [e for e in self.attacked if e.outcome != "right"]
        if bad or not self.reload.answer.startswith("200") or self.exit_code != 0:
            raise EndpointError(
                f"{len(bad)} answers wrong or lost {bad[:3]}, reload answered "
                f"{self.reload.answer!r}, exit code {self.exit_code}"
            )

    @property
    def seconds(self) -> float:
        """From the first question to the last answer."""
        return max(e.stop for e in self.asked) - min(e.start for e in self.asked)

    @property
    def answered(self) -> list[Exchange]:
        """Valid requests with the right scores."""
        return _right(self.asked)

    @property
    def answered_during_reload(self) -> list[Exchange]:
        """Those that waited while the other artifact took over."""
        start, stop = self.reload.start, self.reload.stop
        return [e for e in self.answered if e.stop > start and e.start < stop]


def as_markdown(load: EndpointLoad) -> str:
    """The figures as a table."""
    answered, seconds = load.answered, load.seconds
    rows = {
        "requests per second": f"{len(answered) / seconds:,.1f}",
        "candidates per second": f"{len(answered) * load.num_candidates / seconds:,.0f}",
        "latency p50, p99, max (ms)": _milliseconds(answered),
        "the same during the reload": _milliseconds(load.answered_during_reload),
        "CPU of the server, ms a valid request": f"{_server_ms(load):.2f}",
        "without a server: encode, inputs, rank (CPU ms)": (
            f"{load.alone.encode:.3f}, {load.alone.inputs:.3f}, {load.alone.rank:.3f}"
        ),
        "reload (s)": f"{load.reload.stop - load.reload.start:.1f}",
        "valid requests": _counted(load.asked),
        "answered by version": _listed(Counter(e.version for e in answered)),
        "malformed requests": _counted(load.attacked),
        "their statuses": _listed(Counter(e.detail for e in load.attacked)),
        "load average before, after": (
            f"{load.load_before:.1f}, {load.load_after:.1f} on {os.cpu_count()} cores"
        ),
    }
    table = markdown_table((f"{seconds:.0f} s on loopback", ""), list(rows.items()), left=(0, 1))
    return f"{table}\n\n{_sieges(load.sieges)}" if load.sieges else table


def _sieges(sieges: Sequence[Siege]) -> str:
    """What one valid client and health checks notice of attacks."""
    header = (
        "attack",
        "valid p50, p99, max (ms)",
        "valid requests",
        "slowest health check (ms)",
        "memory (MiB)",
    )
    rows = [
        (
            siege.name,
            _milliseconds(_right(siege.asked)),
            _counted(siege.asked),
            f"{max(siege.health_ms):.0f}",
            f"{siege.rss_mib:.0f}",
        )
        for siege in sieges
    ]
    return markdown_table(header, rows, left=(0, 1, 2))


def _right(exchanges: Sequence[Exchange]) -> list[Exchange]:
    return [e for e in exchanges if e.outcome == "right"]


def as_json(load: EndpointLoad) -> dict[str, Any]:
    """The same numbers for programs."""
    answered = load.answered
    return {
        "seconds": load.seconds,
        "requests_per_s": len(answered) / load.seconds,
        "candidates_per_s": len(answered) * load.num_candidates / load.seconds,
        "latency_ms": _quantiles_ms(answered),
        "latency_during_reload_ms": _quantiles_ms(load.answered_during_reload),
        "server_cpu_ms": _server_ms(load),
        "without_server_cpu_ms": asdict(load.alone),
        "reload_s": load.reload.stop - load.reload.start,
        "reload_answer": load.reload.answer,
        "valid_requests": Counter(e.outcome for e in load.asked),
        "answered_by_version": Counter(e.version for e in answered),
        "malformed_requests": Counter(e.outcome for e in load.attacked),
        "malformed_statuses": Counter(e.detail for e in load.attacked),
        "attacks": {
            siege.name: {
                "latency_ms": _quantiles_ms(_right(siege.asked)),
                "valid_requests": Counter(e.outcome for e in siege.asked),
                "slowest_health_check_ms": max(siege.health_ms),
                "rss_mib": siege.rss_mib,
            }
            for siege in load.sieges
        },
        "exit_code": load.exit_code,
        "load_average": [load.load_before, load.load_after],
        "num_cores": os.cpu_count(),
    }


def _server_ms(load: EndpointLoad) -> float:
    return 1000 * load.server_cpu_s / max(1, len(load.answered))


def _quantiles_ms(exchanges: Sequence[Exchange]) -> dict[str, float] | None:
    if len(exchanges) < 2:
        return None
    times = Times(np.array([(e.stop - e.start) * 1000 for e in exchanges]))
    return {"p50": times.median, "p99": times.percentile(99), "max": times.slowest}


def _milliseconds(exchanges: Sequence[Exchange]) -> str:
    found = _quantiles_ms(exchanges)
    return ", ".join(f"{ms:.1f}" for ms in found.values()) if found else "-"


def _counted(exchanges: Sequence[Exchange]) -> str:
    found = Counter(e.outcome for e in exchanges)
    return _listed({n: found[n] for n in ("right", "wrong", "refused", "lost")})


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
