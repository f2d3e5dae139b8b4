"""The summary of a dataset in words: what preparation and `inspect` print of it."""

import textwrap
from collections.abc import Iterable, Sequence

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.plausibility import Finding
from cdp_torchrec.data.plausibility_checks import CHECKS
from cdp_torchrec.data.prepare.hash_figures import HASH_TITLE, hash_rows
from cdp_torchrec.data.schema import Schema
from cdp_torchrec.data.summary import Summary
from cdp_torchrec.progress import WIDTH
from cdp_torchrec.text_table import aligned_table

_SPLITS = ("train", "test")


def describe_summary(schema: Schema, summary: Summary, findings: Sequence[Finding]) -> str:
    """Spans, matches and histories as a table, collisions, then what the checks found.

    Args:
        schema: of the dataset.
        summary: of the same.
        findings: from `judge`.
    """
    parts = [aligned_table(_rows(schema, summary))]
    if hashes := hash_rows(schema, summary):
        parts.append(f"{textwrap.fill(HASH_TITLE, WIDTH)}\n{aligned_table(hashes)}")
    return "\n\n".join([*parts, describe_findings(findings)])


def describe_findings(findings: Iterable[Finding]) -> str:
    """One paragraph for each finding."""
    findings = list(findings)
    lines = [
        textwrap.fill(
            f"{finding.level}: {finding.text}",
            WIDTH,
            subsequent_indent="  ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        for finding in findings
    ]
    return "\n".join(lines or [f"plausible in all {len(CHECKS)} checks of the log as a whole"])


def _rows(schema: Schema, summary: Summary) -> list[list[str]]:
    def cells(name: str, form: str) -> list[str]:
        values = [summary.value(name, of) for of in _SPLITS]
        return [*("-" if value is None else form.format(value) for value in values), "-"]

    def both(name: str) -> list[str]:
        middle, high = cells(f"{name}_median", "{:.0f}"), cells(f"{name}_p90", "{:.0f}")
        return [f"{m}, {h}" if m != "-" else m for m, h in zip(middle, high, strict=True)]

    def known(of: str | None, figure: str = "unknown_in_test") -> list[str]:
        share = None if of is None else summary.value(figure, of)
        return ["-", "-" if share is None else f"{1 - share:.2%}", "-"]

    def moment(name: str) -> list[str]:
        values = [summary.value(name, of) for of in (*_SPLITS, "behaviours")]
        return ["-" if value is None else utc(int(value)) for value in values]

    return [
        ["summary", *_SPLITS, "behaviours"],
        ["first", *moment("first_time")],
        ["last", *moment("last_time")],
        ["number", *cells("requests", "{:,.0f}")[:2], f"{schema.history.num_behaviours:,}"],
        ["impressions", *cells("impressions", "{:,.0f}")],
        ["click rate", *cells("click_rate", "{:.2%}")],
        ["candidates, mean", *cells("candidates", "{:.2f}")],
        ["user has behaviours", *cells("known_users", "{:.2%}")],
        ["no behaviour before", *cells("empty_history", "{:.2%}")],
        ["history, median and 90 %", *both("history")],
        ["gate passes a behaviour", *cells("gate_passed", "{:.2%}")],
        ["behind the gate, median and 90 %", *both("gated")],
        ["user known from training", *known("test", "new_users")],
        ["item known from training", *known("item_id")],
        ["category known from training", *known(schema.gate_feature())],
    ]
