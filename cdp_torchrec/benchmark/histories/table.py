"""Runs the history benchmark case by case, and shows it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cdp_torchrec.benchmark.histories.case import HistoryCase, ModuleCost, cap, measure, uncapped
from cdp_torchrec.benchmark.histories.config import HistorySettings
from cdp_torchrec.benchmark.histories.isolated import Limits, PassedLimit, run_isolated
from cdp_torchrec.interest import InterestConfig, PooledConfig
from cdp_torchrec.progress import ProgressBar
from cdp_torchrec.text_table import markdown_table

Outcome = ModuleCost | PassedLimit | None
"""None: not run, because a shorter history passed a limit."""


@dataclass(frozen=True)
class HistoryTable:
    """Costs of all rows at all lengths."""

    settings: HistorySettings
    caps: Mapping[str, int | None]
    """By row: history length that the row's file asks for; the benchmark raised it."""
    outcomes: Mapping[tuple[str, int], Outcome]
    """By row and length."""


def run_history_benchmark(
    rows: Mapping[str, InterestConfig], pooled: PooledConfig, settings: HistorySettings
) -> HistoryTable:
    """Measure every row at every length, each in a fresh process.

    Args:
        rows: what to measure.
        pooled: what ratios refer to.
        settings: sizes and limits.
    """
    limits = Limits(time_s=settings.time_limit_s, memory_gib=settings.memory_limit_gib)
    outcomes: dict[tuple[str, int], Outcome] = {}
    with ProgressBar("benchmark", total=len(rows) * len(settings.lengths), unit="cases") as bar:
        for row, config in rows.items():
            affordable = True
            for length in sorted(settings.lengths):
                bar.note(f"{row}, {length} behaviours")
                outcome = None
                if affordable:
                    case = HistoryCase(row, length, uncapped(config, length), pooled, settings)
                    outcome = run_isolated(measure, case, limits)
                affordable = isinstance(outcome, ModuleCost)
                outcomes[row, length] = outcome
                bar.advance()
    return HistoryTable(settings, {name: cap(c) for name, c in rows.items()}, outcomes)


def as_markdown(table: HistoryTable) -> str:
    """Three tables: training time, scoring time, memory."""
    settings = table.settings
    parts = [
        f"{settings.batch_size} impressions of {settings.requests_of_batch} requests, D = "
        f"{settings.embedding_dim}, one CPU thread, the interest module alone.",
        _one_table(
            table,
            "training, ms per batch (x pooled)",
            lambda c: f"{_ms(c.train_ms)} ({c.train_ratio:,.1f}x)",
        ),
        _one_table(
            table,
            "scoring, ms per batch (x pooled)",
            lambda c: f"{_ms(c.score_ms)} ({c.score_ratio:,.1f}x)",
        ),
        _one_table(
            table,
            "peak memory, MiB, training / scoring",
            lambda c: f"{c.train_mib:,.0f} / {c.score_mib:,.0f}",
        ),
    ]
    raised = [f"{row} ({length})" for row, length in table.caps.items() if length is not None]
    if raised:
        parts.append(
            f"\\* raised to the column's length for this table, in the row's file it is shorter: "
            f"{', '.join(raised)}."
        )
    if any(outcome is None for outcome in table.outcomes.values()):
        parts.append("-: not run, because a shorter history passed a limit.")
    return "\n\n".join(parts)


def as_json(table: HistoryTable) -> dict[str, Any]:
    """Settings and one entry for each case."""
    return {
        "settings": table.settings.model_dump(mode="json"),
        "cells": [
            {"row": row, "length": length, "cap_in_file": table.caps[row], **_outcome(outcome)}
            for (row, length), outcome in table.outcomes.items()
        ],
    }


def _one_table(table: HistoryTable, title: str, show: Callable[[ModuleCost], str]) -> str:
    lengths = sorted(table.settings.lengths)
    rows = []
    for row, shortened in table.caps.items():
        outcomes = [table.outcomes[row, length] for length in lengths]
        name = row if shortened is None else rf"{row} \*"
        rows.append([name, *(_shown(o, show, table.settings) for o in outcomes)])
    return markdown_table([title, *map(str, lengths)], rows)


def _shown(outcome: Outcome, show: Callable[[ModuleCost], str], settings: HistorySettings) -> str:
    match outcome:
        case ModuleCost():
            return show(outcome)
        case PassedLimit.TIME:
            return f"> {settings.time_limit_s:g} s"
        case PassedLimit.MEMORY:
            return f"> {settings.memory_limit_gib:g} GiB"
        case None:
            return "-"


def _outcome(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case ModuleCost():
            return asdict(outcome)
        case PassedLimit():
            return {"passed_limit": outcome.value}
        case None:
            return {"passed_limit": "not run"}


def _ms(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
