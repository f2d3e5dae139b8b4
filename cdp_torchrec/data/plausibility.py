"""Is the log as a whole plausible? The verdict on its figures.

Every row of a log may be in order and the log still be wrong: two clocks, two spellings of an id, a
label that stands among the features. The same table of checks judges a log at preparation, in
`inspect` and at the start of a training.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.config import TEST, TRAIN, DataConfig
from cdp_torchrec.data.day_checks import DAY_CHECKS
from cdp_torchrec.data.days import day_folder, grown, load_days
from cdp_torchrec.data.plausibility_checks import CHECKS, Check
from cdp_torchrec.data.schema import DatasetError, Day, Schema, load_schema
from cdp_torchrec.data.summary import SUMMARY, Summary, load_summary


@dataclass(frozen=True)
class Finding:
    """What a figure says."""

    level: Literal["error", "warning", "note"]
    """Beyond what a sane log has, seldom in one, or no more than worth knowing."""
    text: str


def judge(
    summary: Summary, *, without: Collection[str] = (), checks: Sequence[Check] = CHECKS
) -> list[Finding]:
    """All figures beyond a threshold, errors first.

    Args:
        summary: of a dataset, or of an appended day.
        without: features that are not read.
        checks: the thresholds.
    """
    # Not earlier: a process that follows a log lives for days.
    now_ms = 1000.0 * time.time()
    findings = []
    for check in checks:
        for of, figure in summary.figures.get(check.figure, {}).items():
            skipped = of in without or (check.only and of not in check.only)
            if skipped or figure.count < check.at_least:
                continue
            value = figure.value - now_ms if check.from_now else figure.value
            level: Literal["error", "warning"] | None = None
            if not check.warn_below <= value <= check.warn_above:
                level = "warning"
            if not check.error_below <= value <= check.error_above:
                level = "error"
            if level:
                date = utc(int(figure.value)) if "{date}" in check.sentence else ""
                text = check.sentence.format(of=of, date=date, **asdict(figure))
                findings.append(Finding(level, text))
    return sorted(findings, key=lambda finding: finding.level != "error")


def judge_days(
    dataset: Path, base: Schema, days: Sequence[Day], *, without: Collection[str] = ()
) -> dict[str, list[Finding]]:
    """Warnings about appended days, by name; a day that another release appended has no figures.

    Args:
        dataset: dataset directory.
        base: its schema without days.
        days: all of them.
        without: features that are not read.

    Raises:
        DatasetError: the figures of a day are damaged.
    """
    found = {}
    for number, day in enumerate(days, start=1):
        folder = day_folder(dataset, day.name)
        if (folder / SUMMARY).exists():
            summary = load_summary(folder, grown(base, days[:number]))
            found[day.name] = judge(summary, without=without, checks=DAY_CHECKS)
    return found


def check_plausible(config: DataConfig) -> list[str]:
    """Judge a dataset by the figures that its preparation stored, before training on it.

    Args:
        config: which dataset; features that are not read are not judged.

    Returns:
        Warnings, in words.

    Raises:
        DatasetError: no sane log looks so, or the figures are missing.
    """
    schema = load_schema(config.dir)
    findings = judge(load_summary(config.dir, schema), without=config.exclude_features)
    refuse_errors(config.dir, findings)
    texts = [finding.text for finding in findings]
    if any(period not in (TRAIN, TEST) for period in (*config.train_on, config.test_on)):
        days = judge_days(
            config.dir, schema, load_days(config.dir, schema), without=config.exclude_features
        )
        for period in (*config.train_on, config.test_on):
            texts += [f"{period}: {finding.text}" for finding in days.get(period, [])]
    return texts


def refuse_errors(named: Path, findings: Iterable[Finding]) -> None:
    """Stop at errors.

    Raises:
        DatasetError: names all of them, if there are any.
    """
    errors = [finding.text for finding in findings if finding.level == "error"]
    if errors:
        raise DatasetError("\n  * ".join([f"{named}: no sane log looks like this one:", *errors]))
