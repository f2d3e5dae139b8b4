"""Appending a day to a dataset: what it costs is the day, and what is there stays as it is."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from cdp_torchrec.data.days import (
    DAYS,
    day_folder,
    grown,
    load_days,
    save_record,
    vocabulary_paths,
)
from cdp_torchrec.data.history.segments import open_history
from cdp_torchrec.data.history.store import BehaviourSource
from cdp_torchrec.data.manifest import write_manifest
from cdp_torchrec.data.prepare.continued_histories import continue_histories
from cdp_torchrec.data.prepare.database import EngineLimits, open_database, scalar
from cdp_torchrec.data.prepare.day_checks import DayFiles, DayLog, load_day
from cdp_torchrec.data.prepare.day_figures import summarise_day
from cdp_torchrec.data.prepare.history_files import code_behaviours, write_segment
from cdp_torchrec.data.prepare.request_files import write_requests
from cdp_torchrec.data.prepare.request_tables import code_requests
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.prepare.vocabulary import extend_vocabularies
from cdp_torchrec.data.prepare.workplace import changing
from cdp_torchrec.data.schema import Day, Entity, Schema, load_schema
from cdp_torchrec.data.summary import load_summary
from cdp_torchrec.data.tables.vocabulary_digest import vocabulary_digest
from cdp_torchrec.progress import ProgressBar
from cdp_torchrec.whole_file import whole_directory


def append_day(
    dataset: Path, staging: Path, limits: EngineLimits | None = None, *, name: str | None = None
) -> Day:
    """Add a day of staging files to a dataset; all of it or nothing.

    The day lies in a directory of its own, `days/<date>`, which appears by one rename. Ids that are
    known keep their codes, new ones get those behind them; means and deviations of numbers stay
    those of the dataset, so the inputs of a model mean what they did.

    Args:
        dataset: dataset directory.
        staging: directory with `requests/*.parquet` and `behaviours/*.parquet` of the day, columns
            as those that the dataset was made of.
        limits: memory and threads of the engine.
        name: of the day, as a period; None: the date of its first request at UTC.

    Raises:
        DatasetError: there is no dataset, another process adds to it, a staging file is unreadable
            or breaks the contract, or a row is not later than all that the dataset has.
        PreparationError: the day cannot be written.
    """
    return _append(dataset, lambda scratch: DayFiles(staging), limits, name)


def append_log(
    dataset: Path,
    log: Path,
    stage: Callable[[Path], None],
    limits: EngineLimits | None = None,
    *,
    name: str | None = None,
) -> Day:
    """Add a day that lies elsewhere in another form; all of it or nothing.

    Args:
        dataset: dataset directory.
        log: where the day lies; errors about the day as a whole name it.
        stage: fills a directory with staging files, columns as those of the dataset.
        limits: memory and threads of the engine.
        name: as of `append_day`.

    Raises:
        DatasetError: what `stage` finds wrong with the day, or as `append_day`.
        PreparationError: the day cannot be written.
    """

    def staged(scratch: Path) -> DayFiles:
        staging = scratch / "staging"
        staging.mkdir()
        stage(staging)
        return DayFiles(staging, log)

    return _append(dataset, staged, limits, name)


def _append(
    dataset: Path,
    staged: Callable[[Path], DayFiles],
    limits: EngineLimits | None,
    name: str | None,
) -> Day:
    """Add a day whose files are known, or made, when nobody else adds one."""
    base = load_schema(dataset)
    with changing(dataset):
        schema = grown(base, load_days(dataset, base))
        spec = DatasetSpec.of_dataset(base)
        days = dataset / DAYS
        days.mkdir(exist_ok=True)
        with _scratch(days) as scratch:
            files = staged(scratch)
            with (
                ProgressBar("append", total=5, unit="stages") as bar,
                open_database(scratch / "tables", limits or EngineLimits()) as connection,
            ):
                bar.begin("check")
                log = load_day(connection, dataset, schema, files, spec, name)
                history = open_history(dataset, schema)
                with whole_directory(day_folder(dataset, log.name)) as partial:
                    day = _write(connection, dataset, schema, spec, log, history, partial, bar)
                    save_record(partial, day)
                    whole = grown(base, [*schema.days, day])
                    before = load_summary(dataset, base)
                    summarise_day(history, whole, day, partial, before).save(partial)
                    write_manifest(partial)
    return day


@contextmanager
def _scratch(days: Path) -> Iterator[Path]:
    """A directory for intermediate tables, whose name says that nobody reads it."""
    directory = Path(tempfile.mkdtemp(prefix=".scratch.partial-", dir=days))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with suppress(OSError):
            days.rmdir()  # where no day came to lie


def _write(
    connection: duckdb.DuckDBPyConnection,
    dataset: Path,
    schema: Schema,
    spec: DatasetSpec,
    log: DayLog,
    history: BehaviourSource,
    partial: Path,
    bar: ProgressBar,
) -> Day:
    """Write the files of the day."""
    bar.begin("vocabularies")
    num_ids = extend_vocabularies(connection, spec, schema, dataset, partial)
    bar.begin("history")
    code_behaviours(connection, spec)
    earlier = continue_histories(connection, dataset, schema, history)
    num_behaviours = scalar(connection, "SELECT count(*) FROM behaviours")
    write_segment(connection, spec, partial / "history", num_ids, earlier)
    bar.begin("requests")
    before = [*schema.splits.values(), *(day.requests for day in schema.days)]
    first = sum(split.requests for split in before)
    code_requests(
        connection,
        spec,
        partial / "vocabulary",
        has_probability=log.has_probability,
        first=first,
    )
    bar.begin("write")
    write_requests(
        connection,
        spec,
        partial / "requests",
        range(first, first + log.requests.requests),
        has_probability=log.has_probability,
    )
    entities = {}
    for name, count in num_ids.items():
        paths = vocabulary_paths(dataset, schema.days, name)
        paths.append(partial / "vocabulary" / f"{name}.parquet")
        entities[name] = Entity(num_ids=count, digest=vocabulary_digest(*paths))
    return Day(
        name=log.name,
        first_request=first,
        requests=log.requests,
        num_behaviours=num_behaviours,
        last_timestamp=log.last_timestamp,
        entities_before=schema.entities,
        entities=entities,
        log_bytes=log.log_bytes,
    )
