"""What the times of Ele.me's files mean: told by their hours and weekdays, or nobody knows.

`times` is the moment of a request, `hours` and `weekdays` say what a clock and a calendar showed
then. `timediff_list` says how long before the request each behaviour was, `hours_list` and
`weekdays_list` what they showed at that. The documentation names no unit, no zone, no first day of
the week and no order. So each unit is tried on a sample: it is the right one if the hours and days
that follow from it are those of the lists, and if they are so for no other unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.database import first_row, scalar
from cdp_torchrec.data.prepare.log_tables import DAY_MS
from cdp_torchrec.data.prepare.log_times import Clock
from cdp_torchrec.data.schema import DatasetError

HOUR_MS = 3600 * 1000
UNITS = {"seconds": 1000, "minutes": 60_000, "hours": HOUR_MS, "days": DAY_MS}
"""Of `timediff_list`, in ms."""
_AGREED = 0.95
"""Of a sample; so much must fit."""
_LEAST = 100
"""Behaviours; from fewer nothing is concluded."""
_SAMPLE = 10_000
"""Requests, evenly from the whole log."""
_OPTION = "--timediff-unit"


@dataclass(frozen=True)
class ElemeTimes:
    """What the times mean."""

    unit: str
    """Of `timediff_list`, one of `UNITS`."""
    first_is_untimed: bool
    """In a list with one gap less than behaviours: the first has no gap, rather than the last."""
    newest_first: bool
    """Order of the lists."""
    utc_offset_ms: int
    """By how much the clock of the log is ahead of UTC."""
    weekday_shift: int
    """A weekday is (days since 1970 + this) modulo 7."""
    told: str
    """All of that in words, with the figures."""


def request_clock(connection: duckdb.DuckDBPyConnection, path: Path) -> Clock:
    """How column `times` of table `raw` tells the time, by its first row.

    Text is read as UTC: where it is that of the log's own clock, this clock is found to be UTC.

    Raises:
        DatasetError: in no way that is known.
    """
    clocks = [Clock("times", "times", unit) for unit in ("s", "ms")]
    clocks.append(Clock("times", "times", "text", "%Y-%m-%d %H:%M:%S"))
    possible = ", ".join(f"NOT ({clock.is_impossible})" for clock in clocks)
    row = first_row(connection, f"SELECT times, {possible} FROM raw ORDER BY line LIMIT 1")
    assert row is not None
    for clock, is_possible in zip(clocks, row[1:], strict=True):
        if is_possible:
            return clock
    raise DatasetError(
        f"{path}: times is no time from 1990 to 2099 in seconds, in milliseconds, or such as "
        f"2022-03-01 12:30:00: {row[0]}"
    )


def decide_times(
    connection: duckdb.DuckDBPyConnection, source: Path, unit: str | None
) -> ElemeTimes:
    """Find out what the times of table `requests` mean.

    Args:
        connection: holds the table: number, timestamp, hour, weekday, and the lists items, hours,
            weekdays and gaps, which may be one shorter than the others.
        source: where the files lie.
        unit: of the gaps; None: the one that fits.

    Raises:
        DatasetError: the requests' own hours and weekdays do not fit their times, no unit fits or
            several do, the lists are in no order, or `unit` is none of `UNITS` or another one than
            the files tell.
    """
    if unit is not None and unit not in UNITS:
        raise DatasetError(f"{source}: {_OPTION} {unit} is none of {', '.join(UNITS)}")
    step = max(1, -(-scalar(connection, "SELECT count(*) FROM requests") // _SAMPLE))
    connection.execute(f"CREATE TEMP TABLE sampled AS FROM requests WHERE number % {step} = 0")
    offset_ms, shift, clock_told = _decide_clock(connection, source)
    chosen, untimed, unit_told = _decide_unit(connection, source, unit, offset_ms, shift)
    newest_first, order_told = _decide_order(connection, source)
    connection.execute("DROP TABLE sampled")
    told = f"{unit_told}; {order_told}; {clock_told}"
    return ElemeTimes(chosen, untimed, newest_first, offset_ms, shift, told)


def make_steps(connection: duckdb.DuckDBPyConnection, times: ElemeTimes) -> None:
    """Make view `steps` of table `requests`: user_id, number, item, category, age, moment.

    `age` counts from the newest of a list, `moment` is in ms since 1970, null where it is unknown.
    """
    readings = [(times.unit, times.first_is_untimed)]
    timed = _timed("requests", times.utc_offset_ms, times.weekday_shift, readings)
    age = "place" if times.newest_first else "-place"
    connection.execute(f"""
        CREATE VIEW steps AS
        SELECT user_id, number, item, category, {age} AS age,
            CASE WHEN gap >= 0 THEN moment END AS moment
        FROM ({timed})
    """)


def _decide_clock(connection: duckdb.DuckDBPyConnection, source: Path) -> tuple[int, int, str]:
    """Offset to UTC in ms, shift of the weekday, and both in words: those of most requests."""
    row = first_row(
        connection,
        f"""
        WITH clocked AS (
            SELECT (hour - timestamp // {HOUR_MS} % 24 + 35) % 24 - 11 AS ahead, * FROM sampled
        ),
        dated AS (
            SELECT ahead, (weekday + 7 - (timestamp + ahead * {HOUR_MS}) // {DAY_MS} % 7) % 7
                AS shift
            FROM clocked
        )
        SELECT ahead, shift, count(*) AS n, sum(n) OVER () FROM dated
        GROUP BY ahead, shift ORDER BY n DESC, ahead, shift LIMIT 1
        """,
    )
    assert row is not None
    ahead, shift, count, total = row
    figures = f"in {_percent(count, total)} of {total:,} requests"
    if count < _AGREED * total:
        raise DatasetError(
            f"{source}: hours and weekdays of requests do not fit their times: the best clock, "
            f"UTC{ahead:+d}, fits {figures}, and {_AGREED:.0%} are needed"
        )
    return ahead * HOUR_MS, shift, f"clock UTC{ahead:+d} ({figures})"


def _decide_unit(
    connection: duckdb.DuckDBPyConnection,
    source: Path,
    unit: str | None,
    offset_ms: int,
    shift: int,
) -> tuple[str, bool, str]:
    """Unit of the gaps, whether the first of a list has none, and both in words."""
    is_short = scalar(connection, "SELECT count(*) FILTER (len(gaps) < len(items)) FROM sampled")
    readings = [
        (name, first) for name in UNITS for first in ([True, False] if is_short else [False])
    ]
    # A gap of 0 fits all units.
    rows = connection.execute(f"""
        SELECT reading, count(*), count(*) FILTER (fits)
        FROM ({_timed("sampled", offset_ms, shift, readings)})
        WHERE item IS NOT NULL AND gap > 0 AND hour >= 0 AND weekday >= 0
        GROUP BY reading
    """).fetchall()
    counts = {reading: (fitting, total) for reading, total, fitting in rows}
    total = max((total for _, total in counts.values()), default=0)
    names = [
        name + (f", the {'first' if first else 'last'} without one" if is_short else "")
        for name, first in readings
    ]
    shares = [fitting / n for fitting, n in (counts.get(i, (0, 1)) for i in range(len(names)))]
    listed = ", ".join(
        f"{name} {100 * share:.1f} %" for name, share in zip(names, shares, strict=True)
    )
    figures = f"hours and weekdays of {total:,} behaviours fit {listed}"
    fitting = [place for place, share in enumerate(shares) if share >= _AGREED]
    is_told = len(fitting) == 1 and total >= _LEAST
    if unit is None and not is_told:
        raise DatasetError(
            f"{source}: the unit of timediff_list is unknown: {figures}; exactly one must fit "
            f"{_AGREED:.0%} of {_LEAST} or more. If you know it, say it: {_OPTION} seconds, "
            "minutes, hours or days"
        )
    if is_told and unit not in (None, readings[fitting[0]][0]):
        raise DatasetError(
            f"{source}: {_OPTION} {unit} is not what the files tell: {figures}; leave it out"
        )
    possible = [place for place, (name, _) in enumerate(readings) if unit in (None, name)]
    best = max(possible, key=lambda place: shares[place])
    return *readings[best], f"timediff_list in {names[best]} ({figures})"


def _decide_order(connection: duckdb.DuckDBPyConnection, source: Path) -> tuple[bool, str]:
    """Whether lists begin with the newest behaviour, and that in words."""
    row = first_row(
        connection,
        """
        SELECT count(*) FILTER (later > earlier), count(*) FILTER (later < earlier) FROM (
            SELECT unnest(gaps[:-2]) AS earlier, unnest(gaps[2:]) AS later,
                unnest(items[2:]) AS item
            FROM sampled
        ) WHERE earlier >= 0 AND later >= 0 AND item IS NOT NULL
        """,
    )
    assert row is not None
    rising, falling = row
    total = rising + falling
    if max(rising, falling) < _AGREED * total:
        raise DatasetError(
            f"{source}: timediff_list is in no order: of {total:,} steps to the next behaviour "
            f"{_percent(rising, total)} are to an older one and {_percent(falling, total)} to a "
            f"newer one; one of them must be {_AGREED:.0%}"
        )
    newest_first = rising >= falling
    share = _percent(max(rising, falling), total)
    return newest_first, f"{'newest' if newest_first else 'oldest'} first ({share} of {total:,})"


def _percent(part: int, total: int) -> str:
    return f"{100 * part / max(total, 1):.1f} %"


def _timed(
    table: str, offset_ms: int, weekday_shift: int, readings: Sequence[tuple[str, bool]]
) -> str:
    """SQL: a row for each behaviour of each list and each reading of it.

    Its `moment` in ms, null without a gap, is the latest that the gap allows with hour and weekday
    of the behaviour. A gap may count whole units only, so they are looked for within one unit
    before the time that it leads to; where they are not (`fits` is not true), it is that time.

    Args:
        table: as for `decide_times`.
        offset_ms: by how much the clock of the log is ahead of UTC.
        weekday_shift: as in `ElemeTimes`.
        readings: of the gaps, numbered from 0 (`reading`): unit, and whether the first behaviour
            of a list has none where there is one less, rather than the last.
    """
    values = ", ".join(
        f"({number}, {UNITS[unit]}, {first})" for number, (unit, first) in enumerate(readings)
    )
    gaps = """CASE WHEN len(gaps) = len(items) THEN gaps
        WHEN first_is_untimed THEN list_prepend(NULL, gaps) ELSE list_append(gaps, NULL) END"""
    return f"""
        SELECT *, upper // {DAY_MS} * {DAY_MS} + hour * {HOUR_MS} AS today,
            CASE WHEN today > upper THEN today - {DAY_MS} ELSE today END AS begin,
            least(upper, begin + {HOUR_MS - 1}) AS latest,
            (weekday + 7 - (latest // {DAY_MS} + {weekday_shift}) % 7) % 7 = 0 AS is_day,
            -- A day is so long that the hour may begin before it and come again at its end.
            CASE WHEN is_day THEN latest ELSE begin - {DAY_MS - HOUR_MS + 1} END AS found,
            hour BETWEEN 0 AND 23 AND weekday >= 0 AND found > upper - unit_ms
                AND (weekday + 7 - (found // {DAY_MS} + {weekday_shift}) % 7) % 7 = 0 AS fits,
            CASE WHEN fits THEN found ELSE upper END - {offset_ms} AS moment
        FROM (
            SELECT *, timestamp + {offset_ms} - round(gap * unit_ms)::BIGINT AS upper
            FROM (
                SELECT user_id, number, timestamp, reading, unit_ms, unnest(items) AS item,
                    unnest(categories) AS category, unnest(hours) AS hour,
                    unnest(weekdays) AS weekday, unnest({gaps}) AS gap,
                    generate_subscripts(items, 1) AS place
                FROM {table}, (VALUES {values}) readings (reading, unit_ms, first_is_untimed)
            )
        )
    """
