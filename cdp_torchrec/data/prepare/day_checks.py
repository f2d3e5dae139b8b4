"""The rows of a day that is appended, and what must be true of them beside the dataset."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.days import request_folder, vocabulary_paths
from cdp_torchrec.data.prepare.database import first_row, scalar
from cdp_torchrec.data.prepare.spec import CLICK_PROBABILITY, DatasetSpec
from cdp_torchrec.data.prepare.staging_checks import load_rows
from cdp_torchrec.data.prepare.vocabulary import vocabulary_rows
from cdp_torchrec.data.schema import DatasetError, Schema, Split
from cdp_torchrec.data.summary import load_summary


@dataclass(frozen=True)
class DayFiles:
    """Where the rows of a day are."""

    staging: Path
    log: Path | None = None
    """Where they came from, if the staging files are not the user's own."""

    def named(self, table: str = "") -> Path:
        """What errors about all rows name."""
        return self.log or self.staging / table


@dataclass(frozen=True)
class DayLog:
    """What the checks of a day found out."""

    name: str
    requests: Split
    last_timestamp: int
    has_probability: bool
    log_bytes: int | None


def load_day(
    connection: duckdb.DuckDBPyConnection,
    dataset: Path,
    schema: Schema,
    files: DayFiles,
    spec: DatasetSpec,
    name: str | None,
) -> DayLog:
    """Load the rows of a day, and check them.

    Args:
        connection: of the engine; has the staged rows then.
        dataset: dataset directory.
        schema: its schema with all days.
        files: where the rows are.
        spec: what the dataset holds.
        name: of the day, as a period; None: the date of its first request at UTC.

    Raises:
        DatasetError: a staging file is unreadable or breaks the contract, or a row is not later
            than all that the dataset has.
    """
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
    return DayLog(name, split, latest, has_probability, size)


def has_click_probability(dataset: Path) -> bool:
    """Whether the requests of a dataset have the true probability of each click."""
    files = request_folder(dataset, "train").glob("*.parquet")
    return CLICK_PROBABILITY in pq.read_schema(min(files)).names


def _check_probability(dataset: Path, files: DayFiles, has_probability: bool) -> None:
    known = has_click_probability(dataset)
    if known != has_probability:
        more, less = (dataset, files.named()) if known else (files.named(), dataset)
        raise DatasetError(
            f"{files.named('requests')}: another schema: {more} has the column "
            f"'{CLICK_PROBABILITY}', {less} has not"
        )


def _check_times(
    connection: duckdb.DuckDBPyConnection, dataset: Path, schema: Schema, files: DayFiles
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
    connection: duckdb.DuckDBPyConnection, dataset: Path, schema: Schema, files: DayFiles
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


def log_bytes(folder: Path) -> int:
    """Size of the files of a log, without marks and what is being written."""
    files = (path for path in folder.rglob("[!._]*") if path.is_file())
    return sum(path.stat().st_size for path in files)
