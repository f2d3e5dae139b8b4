"""The time of each row of a mapped log as SQL, and what is odd about it."""

import logging

import duckdb

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.prepare.database import Rule, first_row
from cdp_torchrec.data.prepare.local_time import UTC_CLOCK
from cdp_torchrec.data.prepare.log_times import Clock
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.prepare.raw_tables import RawTable
from cdp_torchrec.data.prepare.table_config import TimeConfig, moment
from cdp_torchrec.data.schema import DatasetError

logger = logging.getLogger(__name__)


def times(
    connection: duckdb.DuckDBPyConnection,
    table: RawTable,
    config: TimeConfig,
    mapping: MappingConfig,
    *,
    is_known: bool = False,
) -> tuple[str, str]:
    """The time of each row, and which rows lie in the window of the mapping.

    Args:
        connection: holds the table.
        table: of a log.
        config: its column with moments.
        mapping: has the window.
        is_known: this very column was looked at before, and what is odd about it is said.

    Returns:
        SQL: milliseconds; SQL: condition of the rows that count.

    Raises:
        DatasetError: a time is empty, no time, or cannot be meant, or none lies in the window.
    """
    clock = _clock(connection, table, config)
    gives_hours = mapping.derives_local_time and config is mapping.log.time
    if table.columns[config.column].has_zone and config.names_a_clock and not gives_hours:
        raise DatasetError(
            f"{table.paths[0]}: column '{config.column}' names its zone, so utc_offset and zone "
            "have no effect, unless an hour is derived from it: leave them out"
        )
    empty = Rule(f"{clock.sql} IS NULL", f"'{config.column}' is empty")
    unreadable = Rule(f"{clock.milliseconds} IS NULL", clock.unreadable, clock.sql)
    table.check(connection, [empty, unreadable])
    inside = "true"
    if mapping.window.start:
        inside += f" AND {clock.milliseconds} >= {moment(mapping.window.start)}"
    if mapping.window.end:
        inside += f" AND {clock.milliseconds} < {moment(mapping.window.end)}"
    bad = first_row(
        connection,
        f"SELECT _file, _row, {clock.sql} FROM {table.name} "
        f"WHERE {inside} AND {clock.is_impossible} ORDER BY ALL LIMIT 1",
    )
    if bad:
        file, row, value = bad
        raise DatasetError(f"{table.place(file, row)}: {clock.impossible(value)}{table.hint(row)}")
    if not is_known:
        _count_outside(connection, table, clock, inside)
        _doubt_local_times(connection, table, clock, inside)
    return f"({clock.milliseconds})::BIGINT", inside


def _clock(connection: duckdb.DuckDBPyConnection, table: RawTable, config: TimeConfig) -> Clock:
    column = table.columns[config.column]
    if column.is_timestamp != (config.unit == "timestamp"):
        what = "has" if column.is_timestamp else "does not have"
        raise DatasetError(
            f"{table.paths[0]}: column '{config.column}' {what} parquet's type for moments, "
            f"but unit = '{config.unit}'"
        )
    if config.format:
        try:
            connection.execute("SELECT try_strptime('', ?)", [config.format])
        except duckdb.Error as error:
            raise DatasetError(
                f"'{config.column}' has the format {config.format!r}, which cannot be read: "
                f"{str(error).splitlines()[0]}"
            ) from error
    if config.zone is not None:
        try:
            connection.execute("SELECT timezone(?, TIMESTAMP '2000-01-01')", [config.zone])
        except duckdb.Error as error:
            known = " ".join(str(error).split("Candidate time zones:")[1:]).strip()
            raise DatasetError(
                f"'{config.column}' has the zone {config.zone!r}, which is not known"
                + (f"; there are {known}" if known else "")
            ) from error
    local = UTC_CLOCK if column.has_zone else config.local_time
    return Clock(config.column, table.sql(config.column), config.unit, config.format, local)


def _count_outside(
    connection: duckdb.DuckDBPyConnection, table: RawTable, clock: Clock, inside: str
) -> None:
    row = first_row(
        connection,
        f"SELECT count(*), count(*) FILTER (NOT ({inside})), min({clock.milliseconds}), "
        f"max({clock.milliseconds}) FROM {table.name}",
    )
    assert row is not None
    total, outside, first, last = row
    if total and outside == total:
        raise DatasetError(
            f"{table.paths[0]}: no row lies in the window ([window]): '{clock.column}' runs from "
            f"{utc(int(first))} to {utc(int(last))}"
        )
    if outside:
        logger.warning(
            "%s: %d of %d rows left out: '%s' is outside of the window",
            table.paths[0],
            outside,
            total,
            clock.column,
        )


def _doubt_local_times(
    connection: duckdb.DuckDBPyConnection, table: RawTable, clock: Clock, inside: str
) -> None:
    """Say how many rows were written in the hours in which clocks are changed."""
    if clock.local.zone is None:
        return
    wall = f"CASE WHEN NOT {clock.is_zoned} THEN {clock.wall} END"
    row = first_row(
        connection,
        f"SELECT count(*) FILTER ({clock.local.is_repeated(clock.local.to_utc('wall'))}), "
        f"count(*) FILTER ({clock.local.is_left_out('wall')}), "
        f"min(wall) FILTER ({clock.local.is_left_out('wall')}) "
        f"FROM (SELECT {wall} AS wall FROM {table.name} WHERE {inside})",
    )
    assert row is not None
    repeated, left_out, example = row
    where = f"{table.paths[0]}: '{clock.column}' of %d rows lies in an hour that clocks of %s "
    if repeated:
        logger.warning(where + "show twice: the later one is taken", repeated, clock.local.zone)
    if left_out:
        logger.warning(
            where + "leave out, such as %s: an hour later is taken; is it another zone?",
            left_out,
            clock.local.zone,
            utc(int(example)).removesuffix(" UTC"),
        )
