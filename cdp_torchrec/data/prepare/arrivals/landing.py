"""Messages that come in any order become entries of an inbox, each with all of a stretch of time.

An entry holds what happened from the end of the one before to the end of its own window, an hour,
say. It lands when all partitions are read to so much later that nothing of it should be missing;
what comes later still is refused, because requests that are there did not see it. Beside its rows,
by the same rename, it says what was read:

    <inbox>/2025-06-01T13-00-00/
        requests/, behaviours/, _SUCCESS
        offsets.json       up to which moment all has landed, and which messages that took
        refused.jsonl      messages that could not be used: place, reason, and the message

So each message lands once, whenever a process was killed: messages that were read, but belong to
windows that have not landed, are read again, and what has landed is passed over.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.prepare.arrivals.inbox import SUCCESS
from cdp_torchrec.data.prepare.arrivals.landed import OFFSETS, REFUSED, Landed, Place
from cdp_torchrec.data.prepare.arrivals.messages import Kind, MessageError, RowFormat
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.whole_file import remove_leftovers, whole_directory

logger = logging.getLogger(__name__)

Partition = tuple[str, int]
"""Topic and number."""
_OPEN = ".landing"
_ROWS_IN_MEMORY = 20_000
_CLOCKS_DIFFER_MS = 60_000
"""A message of a later moment than that was not dated right, and would let all others be late."""
_FEW_MESSAGES = 100
_FEW_REFUSED = 3
_KINDS: tuple[Kind, ...] = ("requests", "behaviours")


@dataclass
class _Reading:
    """How far a partition is read."""

    read: int
    """The next message."""
    known: int
    """What was read before the process began; 0: nothing."""
    last_ms: int = -1
    """The latest moment of its messages."""
    is_at_end: bool = False
    refused: set[int] = field(default_factory=set)
    """Messages that were refused, of those that may be read again."""

    @property
    def is_catching_up(self) -> bool:
        """Until then nothing lands, so that what lands is what would have without a restart."""
        return self.read < self.known and not self.is_at_end


@dataclass
class _Window:
    """A stretch of time that is being filled."""

    folder: Path
    rows: dict[Kind, list[Any]] = field(default_factory=lambda: {k: [] for k in _KINDS})
    counts: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0))
    first: dict[Partition, int] = field(default_factory=dict)
    """Its first message in each partition."""


class Landing:
    """Fills windows of an inbox, and lands those that are whole."""

    def __init__(
        self,
        inbox: Path,
        formats: Mapping[Kind, RowFormat],
        landed: Landed,
        *,
        window_ms: int,
        lateness_ms: int,
        max_refused: float,
    ) -> None:
        """Begin with no open window.

        Args:
            inbox: where entries appear; nobody else lands there.
            formats: of the messages.
            landed: what has landed; without places: all that the dataset has.
            window_ms: length of a window, whole seconds.
            lateness_ms: how much later than others a message may come.
            max_refused: share of the messages that may be unusable.
        """
        self._inbox = inbox
        self._formats = formats
        self._window_ms = window_ms
        self._lateness_ms = lateness_ms
        self._max_refused = max_refused
        self._resumed = landed
        self._until_ms = landed.until_ms
        # Entries have whole seconds as names, so no two may begin in one second.
        self._first_start = self._start_of(-(-landed.until_ms // 1000) * 1000)
        self._readings: dict[Partition, _Reading] = {}
        self._windows: dict[int, _Window] = {}
        self._in_memory = self._num_parts = self._num_seen = self._num_before = 0
        self._refused: list[dict[str, Any]] = []
        self.close()  # what a process that was killed left behind
        remove_leftovers(inbox, "[0-9]*T[0-9]*")

    def close(self) -> None:
        """Remove the windows that have not landed; their messages are read again."""
        shutil.rmtree(self._inbox / _OPEN, ignore_errors=True)

    @property
    def num_waiting(self) -> int:
        """Rows whose window has not ended."""
        return sum(sum(window.counts.values()) for window in self._windows.values())

    def open_partition(self, partition: Partition) -> int | None:
        """Know of a partition; where to read on: a message's number, None: at its beginning."""
        topic, number = partition
        place = self._resumed.places.get(topic, {}).get(number)
        if place is None:
            self._readings[partition] = _Reading(0, 0)
            return None
        self._readings[partition] = _Reading(place.first, place.read, refused={*place.refused})
        return place.first

    def add(self, kind: Kind, partition: Partition, offset: int, message: bytes | None) -> None:
        """Take a message, the next one of its partition."""
        reading = self._readings[partition]
        reading.read, reading.is_at_end = offset + 1, False
        if offset in reading.refused:  # though it lay in the future then, and does no longer
            return
        try:
            row = self._formats[kind].decode(message or b"")
            moment: int = row.timestamp
            if moment > time.time() * 1000 + _CLOCKS_DIFFER_MS:
                raise MessageError(f"its 'timestamp' lies in the future: {utc(moment)}")
            reading.last_ms = max(reading.last_ms, moment)
            if moment < self._until_ms:
                if not self._resumed.places and moment < self._resumed.until_ms:
                    self._num_before += 1
                    return
                raise MessageError(
                    f"came too late: it is of {utc(moment)}, and all before {utc(self._until_ms)} "
                    "had landed"
                )
        except MessageError as error:
            if offset >= reading.known:  # else it has landed
                self._num_seen += 1
                reading.refused.add(offset)
                self._refuse(partition, offset, message, str(error))
            return
        self._num_seen += 1
        start = max(self._start_of(moment), self._first_start)
        if start not in self._windows:
            self._windows[start] = _Window(self._inbox / _OPEN / str(start))
        window = self._windows[start]
        window.rows[kind].append(row)
        window.counts[kind] += 1
        window.first.setdefault(partition, offset)
        self._in_memory += 1
        if self._in_memory >= _ROWS_IN_MEMORY:
            for open_window in self._windows.values():
                self._write_rows(open_window)
            self._in_memory = 0

    def at_end(self, partition: Partition) -> None:
        """There is no further message in a partition for now: the others need not wait for it."""
        self._readings[partition].is_at_end = True

    @property
    def is_at_end(self) -> bool:
        """Whether all partitions are."""
        return all(reading.is_at_end for reading in self._readings.values())

    def ahead(self) -> set[Partition]:
        """Partitions that are read far beyond the others, which should come first."""
        limit = self._closed_ms() + 2 * self._window_ms + self._lateness_ms
        return {
            partition
            for partition, reading in self._readings.items()
            if reading.last_ms >= limit and not reading.is_catching_up
        }

    def land(self) -> Iterator[tuple[Path, Landed]]:
        """Land the windows that are whole, each with what was left before it.

        Yields:
            Each entry, and what it says of itself.

        Raises:
            DatasetError: too many messages were refused.
        """
        self._check_refused()
        closed = self._closed_ms()
        whole = [s for s, w in self._windows.items() if s + self._window_ms <= closed]
        for start in sorted(s for s in whole if self._windows[s].counts["requests"]):
            yield self._land(start)

    def _start_of(self, moment: int) -> int:
        return moment - moment % self._window_ms

    def _closed_ms(self) -> int:
        """Windows that end by this moment are whole."""
        readings = self._readings.values()
        behind = [-1 if r.is_catching_up else r.last_ms for r in readings if not r.is_at_end]
        reached = min(behind) if behind else max(r.last_ms for r in readings)
        return self._start_of(reached - self._lateness_ms)

    def _land(self, start: int) -> tuple[Path, Landed]:
        windows = [self._windows.pop(s) for s in sorted(self._windows) if s <= start]
        begin = max(start, -(-self._until_ms // 1000) * 1000)
        name = datetime.fromtimestamp(begin / 1000, UTC).strftime("%Y-%m-%dT%H-%M-%S")
        for window in windows:
            self._write_rows(window)
        self._in_memory = sum(len(r) for w in self._windows.values() for r in w.rows.values())
        self._until_ms = start + self._window_ms
        with whole_directory(self._inbox / name) as partial:
            for kind in _KINDS:
                (partial / kind).mkdir()
                for window in windows:
                    for part in sorted((window.folder / kind).glob("*.parquet")):
                        part.rename(partial / kind / part.name)
                if not any(window.counts[kind] for window in windows):
                    pq.write_table(self._formats[kind].table([]), partial / kind / "none.parquet")
            repeated = _drop_repeated(partial / "requests")
            landed = Landed(
                until_ms=self._until_ms,
                places=self._places(),
                requests=sum(w.counts["requests"] for w in windows) - repeated,
                behaviours=sum(w.counts["behaviours"] for w in windows),
                repeated=repeated,
                before=self._num_before,
                refused=len(self._refused),
            )
            lines = [json.dumps(refused) + "\n" for refused in self._refused]
            (partial / REFUSED).write_text("".join(lines))
            (partial / OFFSETS).write_text(landed.model_dump_json(indent=2))
            (partial / SUCCESS).touch()
        for window in windows:
            shutil.rmtree(window.folder, ignore_errors=True)
        self._refused, self._num_seen, self._num_before = [], 0, 0
        return self._inbox / name, landed

    def _places(self) -> dict[str, dict[int, Place]]:
        places: dict[str, dict[int, Place]] = {}
        for (topic, number), reading in self._readings.items():
            waiting = [w.first.get((topic, number), reading.read) for w in self._windows.values()]
            first = min([reading.read, *waiting])
            reading.refused = {offset for offset in reading.refused if offset >= first}
            places.setdefault(topic, {})[number] = Place(
                first=first, read=reading.read, refused=sorted(reading.refused)
            )
        return places

    def _write_rows(self, window: _Window) -> None:
        for kind, rows in window.rows.items():
            if rows:
                (window.folder / kind).mkdir(parents=True, exist_ok=True)
                part = window.folder / kind / f"part-{self._num_parts:06d}.parquet"
                pq.write_table(self._formats[kind].table(rows), part)
                self._num_parts += 1
                window.rows[kind] = []

    def _refuse(
        self, partition: Partition, offset: int, message: bytes | None, reason: str
    ) -> None:
        topic, number = partition
        if len(self._refused) < _FEW_REFUSED:
            logger.warning(
                "%s, partition %d, message %d cannot be used: %s", topic, number, offset, reason
            )
        text = None if message is None else message.decode("utf-8", "replace")
        self._refused.append(
            {"topic": topic, "partition": number, "offset": offset, "reason": reason}
            | {"message": text}
        )

    def _check_refused(self) -> None:
        if len(self._refused) > self._max_refused * max(self._num_seen, _FEW_MESSAGES):
            last = self._refused[-1]
            raise DatasetError(
                f"{len(self._refused):,} of the last {self._num_seen:,} messages cannot be used, "
                f"more than {self._max_refused:g} of them (--max-refused); the last is "
                f"{last['topic']}, partition {last['partition']}, message {last['offset']}: "
                f"{last['reason']}"
            )


def _drop_repeated(folder: Path) -> int:
    """Remove requests whose id came before, as producers that try again send them.

    A request that is sent once more has the same moment, so both are in one entry.
    """
    paths = sorted(folder.iterdir())
    columns = [pq.read_table(path, columns=["request_id"])["request_id"] for path in paths]
    ids = pa.chunked_array([chunk for c in columns for chunk in c.chunks], pa.string())
    if len(ids.unique()) == len(ids):
        return 0
    seen: set[str] = set()
    repeated = 0
    for path in paths:
        table = pq.read_table(path)
        fresh = [not (i in seen or seen.add(i)) for i in table["request_id"].to_pylist()]
        repeated += len(fresh) - sum(fresh)
        pq.write_table(table.filter(pa.array(fresh)), path)
    return repeated
