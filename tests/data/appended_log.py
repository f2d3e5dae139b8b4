"""A log of four days: a dataset of the first one with three appended ones, and all at once."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.prepare.append import append_day
from cdp_torchrec.data.prepare.staging import build_dataset
from cdp_torchrec.data.reader import DatasetReader
from tests.data.staged_log import SPEC, Rows, random_log, stage

DAY_MS = 86_400_000
DAYS = ("1970-01-02", "1970-01-03", "1970-01-04")


def cut(rows: Rows, day: int) -> Rows:
    """Rows of a random log, whose 1,000 moments are 4 days here, that are of one of them."""
    moved = [row | {"timestamp": row["timestamp"] * DAY_MS // 250} for row in rows]
    return [row for row in moved if row["timestamp"] // DAY_MS == day]


def stage_days(folder: Path, days: range, *, seed: int = 0) -> Path:
    requests, behaviours = random_log(seed)
    found = [[row for day in days for row in cut(rows, day)] for rows in (requests, behaviours)]
    return stage(folder, *found)


SPEC_OF_DAYS = replace(SPEC, test_from=DAY_MS * 3 // 4)


def fill(folder: Path) -> None:
    """A dataset of one day with three appended ones, as it was before them, and all at once."""
    build_dataset(stage_days(folder / "base", range(1)), folder / "grown", SPEC_OF_DAYS)
    shutil.copytree(folder / "grown", folder / "before")
    for number in range(1, 4):
        day = stage_days(folder / f"day-{number}", range(number, number + 1))
        append_day(folder / "grown", day)
    build_dataset(stage_days(folder / "all", range(4)), folder / "whole", SPEC_OF_DAYS)


def reading(dataset: Path, **periods: Any) -> DatasetReader:
    return DatasetReader(DataConfig(dir=dataset, **periods))


def files(dataset: Path) -> list[str]:
    return sorted(str(p.relative_to(dataset)) for p in dataset.rglob("*"))
