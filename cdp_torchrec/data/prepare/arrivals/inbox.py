"""An inbox: a directory in which parts of a log arrive, to be appended one after the other.

    <inbox>/2025-06-01T13-00-00/     named as the period that it becomes
        requests/*.parquet
        behaviours/*.parquet         or, of a mapped log, the files that its mapping names
        _SUCCESS                     comes last: before it is there, nobody reads the rest

What was appended is known from the dataset, whose day has the name of the entry: it becomes part of
the dataset together with its rows, so that nothing is appended twice or left out, whenever a
process was killed.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from cdp_torchrec.data.config import APPENDED_NAMES, is_appended
from cdp_torchrec.data.days import appended_names, load_days
from cdp_torchrec.data.prepare.append import append_day
from cdp_torchrec.data.prepare.database import EngineLimits
from cdp_torchrec.data.prepare.day_checks import log_bytes
from cdp_torchrec.data.prepare.mapped.day import append_mapped_day, spec_of_days
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.prepare.tables import find_parquet, open_parquet
from cdp_torchrec.data.prepare.workplace import DatasetBusyError
from cdp_torchrec.data.schema import DatasetError, Day, load_schema

logger = logging.getLogger(__name__)

SUCCESS = "_SUCCESS"
_TABLES = ("requests", "behaviours")
_LOOK_EVERY_S = 1.0


def follow(
    dataset: Path,
    inbox: Path,
    *,
    mapping: MappingConfig | None = None,
    limits: EngineLimits | None = None,
    idle_timeout_s: float | None = None,
) -> Iterator[Day]:
    """Append the entries of an inbox in the order of their names, and those that come later.

    Args:
        dataset: dataset directory.
        inbox: directory in which entries arrive.
        mapping: that of the dataset, by which entries are read; None: they are staging files.
        limits: memory and threads of the engine.
        idle_timeout_s: seconds without a new entry after which it ends; None: never.

    Yields:
        What was appended.

    Raises:
        DatasetError: there is no inbox, the mapping cannot add days to the dataset, an entry has
            another name than a period, comes too late or was changed, or cannot be appended.
        PreparationError: the dataset cannot be written.
    """
    if mapping is not None:
        spec_of_days(mapping, dataset)  # says what is wrong, before anything arrives
    _check_appended(dataset, inbox)
    said, idle_since = "", time.monotonic()
    while True:
        entry, obstacle = _next_entry(dataset, inbox)
        if entry is not None:
            try:
                if mapping is None:
                    day = append_day(dataset, entry, limits, name=entry.name)
                else:
                    day = append_mapped_day(mapping, entry, dataset, limits=limits, name=entry.name)
            except DatasetBusyError as busy:
                obstacle = str(busy)
            else:
                yield day
                said, idle_since = "", time.monotonic()
                continue
        if obstacle and obstacle != said:
            logger.warning(obstacle)
            said = obstacle
        if idle_timeout_s is not None and time.monotonic() - idle_since >= idle_timeout_s:
            return
        time.sleep(_LOOK_EVERY_S)


def entries(inbox: Path) -> list[Path]:
    """All entries in the order of their names, whole or not.

    Raises:
        DatasetError: there is no such directory, or something else is in it.
    """
    if not inbox.is_dir():
        raise DatasetError(f"{inbox}: no such directory; make it, entries arrive there")
    # Others write under names of this kind, and so does what a writer keeps beside its output.
    found = sorted(path for path in inbox.iterdir() if path.name[0] not in "._")
    for path in found:
        if not (path.is_dir() and is_appended(path.name)):
            raise DatasetError(
                f"{path}: is no entry of an inbox: these are directories whose names are "
                f"{APPENDED_NAMES}; what is being written may begin with '.' or '_'"
            )
    return found


def is_complete(entry: Path) -> bool:
    """Whether all of an entry is there: it, or each of its two tables, has the mark."""
    return (entry / SUCCESS).exists() or all((entry / t / SUCCESS).exists() for t in _TABLES)


def _next_entry(dataset: Path, inbox: Path) -> tuple[Path | None, str]:
    """The entry to append now, or what is in the way, if anything is."""
    appended = appended_names(dataset)
    fresh = [path for path in entries(inbox) if path.name not in set(appended)]
    if not fresh:
        return None, ""
    first = fresh[0]
    if appended and first.name < appended[-1]:
        raise DatasetError(
            f"{first}: comes too late: {dataset} has {appended[-1]} already, and nothing can "
            "be put before requests that did not see it; remove the entry, or prepare the dataset "
            "again"
        )
    if is_complete(first):
        return first, ""
    complete = next((path.name for path in fresh if is_complete(path)), None)
    behind = f"; {complete} behind it is complete" if complete else ""
    return None, f"{first}: waiting for its {SUCCESS}{behind}"


def _check_appended(dataset: Path, inbox: Path) -> None:
    """What was appended and is still there is what was appended."""
    days = {day.name: day for day in load_days(dataset, load_schema(dataset))}
    for entry in entries(inbox):
        if entry.name not in days or not is_complete(entry):
            continue
        day = days[entry.name]
        if day.log_bytes is not None:
            _check_same(entry, "bytes", log_bytes(entry), day.log_bytes, dataset)
            continue
        for table, count in zip(_TABLES, (day.requests.requests, day.num_behaviours), strict=True):
            paths = find_parquet(entry / table)
            found = sum(open_parquet(paths, {}).num_rows)
            _check_same(entry / table, "rows", found, count, dataset)


def _check_same(place: Path, what: str, found: int, appended: int, dataset: Path) -> None:
    if found != appended:
        raise DatasetError(
            f"{place}: has {found:,} {what} now, {appended:,} of them were appended to {dataset} "
            "under this name: what was appended cannot be changed"
        )
