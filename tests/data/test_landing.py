"""Messages in any order land in entries of their windows, each once, and wherever it was killed."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.prepare.arrivals.inbox import entries, is_complete
from cdp_torchrec.data.prepare.arrivals.landed import Landed, newest_landed, nothing_landed
from cdp_torchrec.data.prepare.arrivals.landing import Landing, Partition
from cdp_torchrec.data.prepare.arrivals.messages import Kind, MessageError, row_formats
from cdp_torchrec.data.schema import DatasetError
from tests.data.attributed_log import ATTRIBUTES
from tests.data.staged_log import SPEC, behaviour, request

FORMATS = row_formats(SPEC, has_probability=False)
KINDS: dict[str, Kind] = {"shown": "requests", "done": "behaviours"}
HOUR_MS, MINUTE_MS = 3_600_000, 60_000
BEGIN = 1_000 * HOUR_MS
Log = dict[Partition, list[bytes | None]]


def landing_at(
    inbox: Path,
    *,
    until_ms: int = BEGIN,
    window_ms: int = HOUR_MS,
    max_refused: float = 0.0,
) -> Landing:
    inbox.mkdir(exist_ok=True)
    return Landing(
        inbox,
        FORMATS,
        newest_landed(inbox) or nothing_landed(until_ms=until_ms),
        window_ms=window_ms,
        lateness_ms=MINUTE_MS,
        max_refused=max_refused,
    )


def as_message(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode()


def drawn_log(rng: random.Random) -> Log:
    """Six hours on two topics of two partitions, neighbours out of order by up to a minute."""
    log: Log = {(topic, number): [] for topic in KINDS for number in range(2)}
    rows = [
        (moment + rng.randrange(MINUTE_MS // 2), number)
        for number, moment in enumerate(range(BEGIN, BEGIN + 6 * HOUR_MS, 4 * MINUTE_MS))
    ]
    for moment, number in rows:
        # Nobody asks anything in the second hour.
        is_request = rng.random() < 0.5 and not HOUR_MS <= moment - BEGIN < 2 * HOUR_MS
        row = (request if is_request else behaviour)(timestamp=moment)
        row |= {"request_id": f"r{number}"} if is_request else {"item": f"i{number}"}
        log["shown" if is_request else "done", rng.randrange(2)].append(as_message(row))
    return log


def read(
    landing: Landing, log: Log, rng: random.Random, *, killed_after: int | None = None
) -> list[tuple[Path, Landed]]:
    """Read partitions as a broker would hand them out, to their ends or to a kill."""
    places = {partition: landing.open_partition(partition) or 0 for partition in log}
    landed: list[tuple[Path, Landed]] = []
    count = 0
    while any(places[partition] < len(log[partition]) for partition in log):
        partition = rng.choice([p for p in log if places[p] < len(log[p])])
        for offset in range(places[partition], min(places[partition] + 7, len(log[partition]))):
            if count == killed_after:
                return landed
            landing.add(KINDS[partition[0]], partition, offset, log[partition][offset])
            places[partition] = offset + 1
            count += 1
        if places[partition] == len(log[partition]):
            landing.at_end(partition)
        landed += landing.land()
    return landed


def rows_of(entry: Path) -> list[str]:
    """Names of all that is in an entry: ids of requests, items of behaviours."""
    requests = pq.read_table(entry / "requests")["request_id"].to_pylist()
    return sorted([*requests, *pq.read_table(entry / "behaviours")["item"].to_pylist()])


def contents(inbox: Path) -> dict[str, list[str]]:
    assert all(is_complete(entry) for entry in entries(inbox))
    return {entry.name: rows_of(entry) for entry in entries(inbox)}


def expected(log: Log) -> dict[str, list[str]]:
    """Each hour that is over, by the clock; the second one has no requests, so the third has it."""
    hours: dict[int, list[str]] = {}
    for messages in log.values():
        for message in messages:
            row = json.loads(message or b"")
            hour = (row["timestamp"] - BEGIN) // HOUR_MS
            hours.setdefault(max(hour, 2) if hour else 0, []).append(
                row.get("request_id") or row["item"]
            )
    return {
        f"1970-02-11T{16 + hour:02}-00-00": sorted(names)
        for hour, names in hours.items()
        if hour < 5
    }


@pytest.mark.parametrize("seed", range(2))
def test_each_hour_lands_whole_whatever_the_order_of_the_partitions(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    log = drawn_log(rng)
    landing = landing_at(tmp_path / "inbox")
    landed = read(landing, log, rng)
    assert contents(tmp_path / "inbox") == expected(log)
    assert [entry.name for entry, _ in landed] == list(expected(log))
    assert all(said.refused == said.repeated == 0 for _, said in landed)
    assert landing.num_waiting == sum(map(len, log.values())) - sum(
        map(len, expected(log).values())
    )


@pytest.mark.parametrize("seed", range(5))
def test_whoever_is_killed_goes_on_and_nothing_is_lost_or_there_twice(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    log = drawn_log(rng)
    for _ in range(6):
        read(landing_at(tmp_path / "inbox"), log, rng, killed_after=rng.randrange(80))
        (tmp_path / "inbox" / ".1970-02-11T16-00-00.partial-01").mkdir()
    read(landing_at(tmp_path / "inbox"), log, rng)
    assert contents(tmp_path / "inbox") == expected(log)
    assert not list((tmp_path / "inbox").glob(".*partial*"))


def test_nothing_lands_before_all_is_read_again_that_had_been_read(tmp_path: Path) -> None:
    moments = [0, 2 * HOUR_MS, 4 * HOUR_MS, 2 * HOUR_MS + 1, 3 * HOUR_MS]
    log: Log = {
        ("shown", 0): [
            as_message(request(number, timestamp=BEGIN + moment))
            for number, moment in enumerate(moments)
        ],
        ("shown", 1): [as_message(request(9, timestamp=BEGIN + 2 * HOUR_MS - 1))],
    }
    first = landing_at(tmp_path)
    for partition in reversed(log):  # the second partition holds the third hour back
        first.open_partition(partition)
        for offset, message in enumerate(log[partition]):
            first.add("requests", partition, offset, message)
    assert [said.requests for _, said in first.land()] == [1]
    again = landing_at(tmp_path)
    for partition in reversed(log):
        begin = again.open_partition(partition) or 0
        again.at_end(("shown", 1))
        for offset, message in list(enumerate(log[partition]))[begin:]:
            again.add("requests", partition, offset, message)
            list(again.land())
    again.at_end(("shown", 1))
    list(again.land())
    assert [rows_of(entry) for entry in entries(tmp_path)] == [["r0"], ["r9"], ["r1", "r3"]]


def test_a_partition_that_is_far_ahead_waits_and_the_slowest_never_does(tmp_path: Path) -> None:
    landing = landing_at(tmp_path)
    fast, slow = ("shown", 0), ("shown", 1)
    for partition in (fast, slow):
        landing.open_partition(partition)
        landing.add("requests", partition, 0, as_message(request(0, timestamp=BEGIN)))
    landing.add("requests", fast, 1, as_message(request(1, timestamp=BEGIN + 9 * HOUR_MS)))
    assert landing.ahead() == {fast}
    landing.add("requests", slow, 1, as_message(request(2, timestamp=BEGIN + 8 * HOUR_MS)))
    assert landing.ahead() == set()
    landing.add("requests", slow, 2, as_message(request(3, timestamp=BEGIN + 19 * HOUR_MS)))
    assert landing.ahead() == {slow}


def test_what_the_dataset_has_is_passed_over_and_names_are_of_whole_seconds(tmp_path: Path) -> None:
    half_past = BEGIN + HOUR_MS // 2 + 1
    log: Log = {
        ("shown", 0): [
            as_message(request(1, timestamp=half_past - 1)),
            as_message(request(2, timestamp=half_past)),
            as_message(request(3, timestamp=BEGIN + 3 * HOUR_MS)),
        ],
        ("done", 0): [],
    }
    landing = landing_at(tmp_path, until_ms=half_past)
    landing.open_partition(("done", 0))
    landing.at_end(("done", 0))
    [(_, landed)] = read(landing, {("shown", 0): log["shown", 0]}, random.Random(0))
    assert contents(tmp_path) == {"1970-02-11T16-30-01": ["r2"]}
    assert (landed.before, landed.refused) == (1, 0)


def test_a_rest_of_a_second_lands_with_the_next_one_whose_name_it_would_have(
    tmp_path: Path,
) -> None:
    moments = [BEGIN + ms for ms in (500, 1_500, 2_500, 3_600_000)]
    log: Log = {("shown", 0): [as_message(request(n, timestamp=t)) for n, t in enumerate(moments)]}
    read(landing_at(tmp_path, until_ms=BEGIN + 1, window_ms=1_000), log, random.Random(0))
    names = [f"1970-02-11T16-00-0{second}" for second in (1, 2)]
    assert contents(tmp_path) == dict(zip(names, [["r0", "r1"], ["r2"]], strict=True))


def test_a_request_that_was_sent_twice_lands_once(tmp_path: Path) -> None:
    row = as_message(request(1, timestamp=BEGIN))
    log: Log = {("shown", 0): [row, row, as_message(request(2, timestamp=BEGIN + 2 * HOUR_MS))]}
    [(entry, landed)] = read(landing_at(tmp_path), log, random.Random(0))
    assert (landed.requests, landed.repeated, rows_of(entry)) == (1, 1, ["r1"])


BAD: dict[str, tuple[Callable[[], bytes | None], str]] = {
    "no JSON": (lambda: b"\x00\x01", "JSON is malformed"),
    "nothing": (lambda: None, "Input data was truncated"),
    "a pit": (lambda: b'{"x":' + b"[" * 100_000, "maximum recursion depth exceeded"),
    "a missing column": (
        lambda: as_message({k: v for k, v in good().items() if k != "topic"}),
        "Object missing required field `topic`",
    ),
    "seconds": (
        lambda: as_message(good(timestamp=str(BEGIN))),
        "Expected `int`, got `str` - at `$.timestamp`",
    ),
    "a label": (lambda: as_message(good(label=[0, 2])), r"Invalid enum value 2 - at `$.label"),
    "lists": (
        lambda: as_message(good(price=[1.0])),
        "candidate lists of unequal length: 1 of 'price', 2 of 'label'",
    ),
    "no item": (lambda: as_message(good(item_id=["a", None])), "got `null` - at `$.item_id"),
    "the future": (
        lambda: as_message(good(timestamp=7_000_000_000_000)),
        "its 'timestamp' lies in the future: 2191-10-27",
    ),
    "late": (
        lambda: as_message(good(timestamp=BEGIN + 1)),
        "came too late: it is of 1970-02-11 16:00:00",
    ),
}


def good(**values: Any) -> dict[str, Any]:
    return request(9, timestamp=BEGIN + HOUR_MS) | values


@pytest.mark.parametrize("name", BAD)
def test_a_message_that_cannot_be_used_is_kept_with_its_place_and_the_reason(
    tmp_path: Path, name: str
) -> None:
    make, reason = BAD[name]
    hours: list[bytes | None] = [
        as_message(request(number, timestamp=BEGIN + number * HOUR_MS)) for number in range(4)
    ]
    # The first hour lands before the message comes: two hours are read, then it.
    log: Log = {("shown", 0): [*hours[:3]]}
    landing = landing_at(tmp_path, max_refused=0.01)
    read(landing, log, random.Random(0))
    landing.add("requests", ("shown", 0), 3, make())
    landing.add("requests", ("shown", 0), 4, hours[3])
    [(entry, landed)] = landing.land()
    assert (landed.requests, landed.refused) == (1, 1)
    [refused] = map(json.loads, (entry / "refused.jsonl").read_text().splitlines())
    assert (refused["topic"], refused["partition"], refused["offset"]) == ("shown", 0, 3)
    assert reason in refused["reason"]
    landing.add("requests", ("shown", 0), 5, b"x")
    landing.add("requests", ("shown", 0), 6, b"x")
    with pytest.raises(DatasetError, match=r"2 of the last 2 messages .* partition 0, message 6"):
        list(landing.land())


def test_what_was_refused_stays_so_when_it_is_read_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock_at(moment: int) -> None:
        monkeypatch.setattr("time.time", lambda: moment / 1000)

    moments = [0, 3 * HOUR_MS, 2 * HOUR_MS, 2 * HOUR_MS + MINUTE_MS]
    rows = [request(n, timestamp=BEGIN + moment) for n, moment in enumerate(moments)]
    # While the second message waits for its hour, another one is dated an hour too late.
    rows.insert(2, request(9, timestamp=BEGIN + 4 * HOUR_MS))
    log: Log = {("shown", 0): [as_message(row) for row in rows]}
    clock_at(BEGIN + 3 * HOUR_MS)
    [(_, landed)] = read(landing_at(tmp_path, max_refused=1.0), log, random.Random(0))
    assert landed.refused == 1
    clock_at(BEGIN + 9 * HOUR_MS)
    more = request(10, timestamp=BEGIN + 6 * HOUR_MS)
    log["shown", 0].append(as_message(more))
    read(landing_at(tmp_path, max_refused=1.0), log, random.Random(0))
    names = [name for entry in entries(tmp_path) for name in rows_of(entry)]
    assert names == ["r0", "r2", "r3", "r1"]


def test_ids_become_text_and_what_may_be_null_is() -> None:
    row = request(5, user_id=7, words=None, topic=None, item_id=[1, "b"], price=[1, None])
    table = FORMATS["requests"].table([FORMATS["requests"].decode(as_message(row))])
    [found] = table.to_pylist()
    assert found == row | {"user_id": "7", "item_id": ["1", "b"]}
    with pytest.raises(MessageError, match="user_id"):
        FORMATS["behaviours"].decode(as_message(behaviour(user_id=None)))


def test_behaviours_have_the_attributes_of_the_dataset() -> None:
    rows = row_formats(replace(SPEC, attributes=ATTRIBUTES), has_probability=False)["behaviours"]
    row = behaviour(dwell_s=2.5, tags=["t1", None], shop=None)
    assert rows.table([rows.decode(as_message(row))]).to_pylist() == [row]
    for wrong, reason in (
        ({"tags": ["a", "b", "c", "d"]}, "Expected `array` of length <= 3 - at `$.tags`"),
        ({"dwell_s": "2"}, "Expected `float | null`, got `str`"),
    ):
        with pytest.raises(MessageError, match=re.escape(reason)):
            rows.decode(as_message(row | wrong))
