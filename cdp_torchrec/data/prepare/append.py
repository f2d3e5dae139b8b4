"""Appending a day to a dataset: what it costs is the day, and what is there stays as it is."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.days import (
    DAYS,
    day_folder,
    grown,
    load_days,
    request_folder,
    save_record,
    vocabulary_paths,
)
from cdp_torchrec.data.history_segments import open_history
from cdp_torchrec.data.history_store import BehaviourSource
from cdp_torchrec.data.manifest import write_manifest
from cdp_torchrec.data.prepare.database import EngineLimits, first_row, open_database, scalar
from cdp_torchrec.data.prepare.day_figures import summarise_day
from cdp_torchrec.data.prepare.earlier_histories import EarlierHistories
from cdp_torchrec.data.prepare.history_files import code_behaviours, write_segment
from cdp_torchrec.data.prepare.request_files import write_requests
from cdp_torchrec.data.prepare.request_tables import code_requests
from cdp_torchrec.data.prepare.spec import CLICK_PROBABILITY, USER_ENTITY, DatasetSpec
from cdp_torchrec.data.prepare.staging_checks import load_rows
from cdp_torchrec.data.prepare.vocabulary import extend_vocabularies, vocabulary_rows
from cdp_torchrec.data.prepare.workplace import changing
from cdp_torchrec.data.schema import DatasetError, Day, Entity, Schema, Split, load_schema
from cdp_torchrec.data.summary import load_summary
from cdp_torchrec.data.vocabulary_digest import vocabulary_digest
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
    return _append(dataset, lambda scratch: _DayFiles(staging), limits, name)


def append_log(
    dataset: Path,
    log: Path,
    stage: Callable[[Path, DatasetSpec], None],
    limits: EngineLimits | None = None,
    *,
    name: str | None = None,
) -> Day:
    """Add a day that lies elsewhere in another form; all of it or nothing.

    Args:
        dataset: dataset directory.
        log: where the day lies; errors about the day as a whole name it.
        stage: fills a directory with staging files of what the dataset holds.
        limits: memory and threads of the engine.
        name: as of `append_day`.

    Raises:
        DatasetError: what `stage` finds wrong with the day, or as `append_day`.
        PreparationError: the day cannot be written.
    """
    spec = DatasetSpec.of_dataset(load_schema(dataset))

    def staged(scratch: Path) -> _DayFiles:
        staging = scratch / "staging"
        staging.mkdir()
        stage(staging, spec)
        return _DayFiles(staging, log)

    return _append(dataset, staged, limits, name)


def log_bytes(folder: Path) -> int:
    """Size of the files of a log, without marks and what is being written."""
    files = (path for path in folder.rglob("[!._]*") if path.is_file())
    return sum(path.stat().st_size for path in files)


@dataclass(frozen=True)
class _DayFiles:
    """Where the rows of a day are."""

    staging: Path
    log: Path | None = None
    """Where they came from, if the staging files are not the user's own."""

    def named(self, table: str = "") -> Path:
        """What errors about all rows name."""
        return self.log or self.staging / table


def _append(
    dataset: Path,
    staged: Callable[[Path], _DayFiles],
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
                log = _load(connection, dataset, schema, files, spec, name)
                history = open_history(dataset, schema)
                with whole_directory(day_folder(dataset, log.name)) as partial:
                    day = _write(connection, dataset, schema, spec, log, history, partial, bar)
                    save_record(partial, day)
                    whole = grown(base, [*schema.days, day])
                    before = load_summary(dataset, base)
                    summarise_day(history, whole, day, partial, before).save(partial)
                    write_manifest(partial)
    return day


@dataclass(frozen=True)
class _DayLog:
    """What the checks of a day found out."""

    name: str
    requests: Split
    last_timestamp: int
    has_probability: bool
    log_bytes: int | None


@contextmanager
def _scratch(days: Path) -> Iterator[Path]:
    """A directory for intermediate tables, whose name says that nobody reads it."""
    directory = Path(tempfile.mkdtemp(prefix=".scratch.partial-", dir=days))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _load(
    connection: duckdb.DuckDBPyConnection,
    dataset: Path,
    schema: Schema,
    files: _DayFiles,
    spec: DatasetSpec,
    name: str | None,
) -> _DayLog:
    """Load and check the rows of the day."""
    has_probability = load_rows(connection, files.staging, spec)
    _check_probability(dataset, files, has_probability)
    row = first_row(
        connection,
        """
        SELECT count(*), sum(len(label))::BIGINT, sum(list_sum(label))::BIGINT, min(timestamp),
            max(timestamp)
        FROM staged_requests
        """,
    )
    if row is None or row[0] == 0:
        raise DatasetError(f"{files.named('requests')}: the day has no requests")
    requests, impressions, clicks, first, last = row
    name = name or datetime.fromtimestamp(first / 1000, UTC).date().isoformat()
    _check_times(connection, dataset, schema, files)
    last_name = schema.days[-1].name if schema.days else ""
    if name == last_name:
        raise DatasetError(
            f"{files.named()}: its first request is of {name}, and {dataset} has requests of that "
            "day already: a day is appended once, as a whole"
        )
    if name < last_name:
        raise DatasetError(
            f"{files.named()}: would be the period {name}, and {dataset} has {last_name} already: "
            "names of periods are in the order of time"
        )
    _check_new(connection, dataset, schema, files)
    latest = scalar(
        connection,
        f"SELECT greatest({last}, coalesce(max(timestamp), {last})) FROM staged_behaviours",
    )
    split = Split(
        requests=requests,
        impressions=impressions,
        clicks=clicks,
        first_timestamp=first,
        last_timestamp=last,
    )
    size = log_bytes(files.log) if files.log else None
    return _DayLog(name, split, latest, has_probability, size)


def has_click_probability(dataset: Path) -> bool:
    """Whether the requests of a dataset have the true probability of each click."""
    files = request_folder(dataset, "train").glob("*.parquet")
    return CLICK_PROBABILITY in pq.read_schema(min(files)).names


def _check_probability(dataset: Path, files: _DayFiles, has_probability: bool) -> None:
    known = has_click_probability(dataset)
    if known != has_probability:
        more, less = (dataset, files.named()) if known else (files.named(), dataset)
        raise DatasetError(
            f"{files.named('requests')}: another schema: {more} has the column "
            f"'{CLICK_PROBABILITY}', {less} has not"
        )


def _check_times(
    connection: duckdb.DuckDBPyConnection, dataset: Path, schema: Schema, files: _DayFiles
) -> None:
    """Everything of the day is later than all that was there."""
    until = last_moment(dataset, schema)
    for table, what in (("requests", "request"), ("behaviours", "behaviour")):
        first, last = connection.execute(
            f"SELECT min(timestamp), max(timestamp) FROM staged_{table}"
        ).fetchall()[0]
        if first is None or first > until:
            continue
        reason = (
            "this day was appended before, or is older than the dataset"
            if last <= until
            else "days are appended in the order of time, each without a row of the one before"
        )
        raise DatasetError(
            f"{files.named(table)}: the first {what} is of {utc(first)}, not later than "
            f"{utc(until)}, the last moment in {dataset}: {reason}"
        )


def last_moment(dataset: Path, schema: Schema) -> int:
    """The latest request or behaviour of a dataset, milliseconds since the epoch.

    Args:
        dataset: dataset directory.
        schema: its schema with all days.
    """
    if schema.days:
        return schema.days[-1].last_timestamp
    behaviours = load_summary(dataset, schema).value("last_time", "behaviours")
    return max(int(behaviours or 0), *(s.last_timestamp for s in schema.splits.values()))


def _check_new(
    connection: duckdb.DuckDBPyConnection, dataset: Path, schema: Schema, files: _DayFiles
) -> None:
    """No request has the id of one that the dataset has."""
    stored = vocabulary_rows(vocabulary_paths(dataset, schema.days, "request"))
    found = first_row(
        connection,
        f"""
        SELECT raw FROM {stored} SEMI JOIN
            (SELECT request_id::VARCHAR AS raw FROM staged_requests) USING (raw)
        ORDER BY raw LIMIT 1
        """,
    )
    if found:
        raise DatasetError(
            f"{files.named('requests')}: request_id {found[0]} is that of another request in "
            f"{dataset}, it must be unique"
        )


def _write(
    connection: duckdb.DuckDBPyConnection,
    dataset: Path,
    schema: Schema,
    spec: DatasetSpec,
    log: _DayLog,
    history: BehaviourSource,
    partial: Path,
    bar: ProgressBar,
) -> Day:
    """Write the files of the day."""
    bar.begin("vocabularies")
    num_ids = extend_vocabularies(connection, spec, schema, dataset, partial)
    bar.begin("history")
    code_behaviours(connection, spec)
    earlier = _join_earlier(connection, dataset, schema, history)
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


def _join_earlier(
    connection: duckdb.DuckDBPyConnection,
    dataset: Path,
    schema: Schema,
    history: BehaviourSource,
) -> EarlierHistories:
    """Let the behaviours of the day, and the view `past`, go on from what the store has."""
    users = _column(
        connection,
        f"""
        SELECT DISTINCT code FROM vocabulary_{USER_ENTITY}
        WHERE code <= {schema.entities[USER_ENTITY].num_ids} ORDER BY code
        """,
    )
    earlier = EarlierHistories(history, users)
    lengths = pa.table({"user_id": users, "length": earlier.lengths})
    connection.register("_lengths", lengths)
    connection.execute("CREATE TABLE earlier_lengths AS FROM _lengths")
    connection.unregister("_lengths")
    connection.execute("""
        CREATE TABLE joined AS
        SELECT b.* REPLACE (b.ordinal + coalesce(e.length, 0) AS ordinal)
        FROM behaviours b LEFT JOIN earlier_lengths e USING (user_id)
        ORDER BY user_id, ordinal
    """)
    connection.execute("DROP VIEW past")
    connection.execute("DROP TABLE behaviours")
    connection.execute("ALTER TABLE joined RENAME TO behaviours")
    item = schema.history.item_entity
    pairs = connection.sql(f"""
        SELECT DISTINCT u.code AS user_id, i.code AS item
        FROM (SELECT user_id, unnest(item_id) AS item_id FROM staged_requests) s
        JOIN vocabulary_{USER_ENTITY} u ON u.raw = s.user_id::VARCHAR
        JOIN vocabulary_{item} i ON i.raw = s.item_id::VARCHAR
        WHERE u.code <= {schema.entities[USER_ENTITY].num_ids}
            AND i.code <= {schema.entities[item].num_ids}
    """).to_arrow_table()
    touched = earlier.last_touches(pairs["user_id"].to_numpy(), pairs["item"].to_numpy())
    connection.register(
        "_touched",
        pa.table(
            {
                "user_id": users[touched.user],
                "item": touched.item,
                "timestamp": touched.timestamp,
                "ordinal": touched.ordinal,
            }
        ),
    )
    connection.execute("CREATE TABLE earlier_touches AS FROM _touched")
    connection.unregister("_touched")
    # The length of a history is the ordinal of its last behaviour, whatever its item: 0 is none.
    connection.execute(f"""
        CREATE VIEW past AS
        SELECT user_id, item, timestamp, ordinal FROM behaviours
        UNION ALL SELECT user_id, item, timestamp, ordinal FROM earlier_touches
        UNION ALL SELECT user_id, 0, {last_moment(dataset, schema)}, length
            FROM earlier_lengths WHERE length > 0
    """)
    return earlier


def _column(connection: duckdb.DuckDBPyConnection, query: str) -> np.ndarray:
    return connection.sql(query).to_arrow_table().column(0).to_numpy()
