"""Topics of a broker land as the log that was sent, whoever is killed; and what is wrong is said.

The broker is librdkafka's own: it runs inside a producer, and speaks the protocol over TCP.
"""

import ctypes
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands import prepare_data
from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.prepare.arrivals import kafka
from cdp_torchrec.data.prepare.arrivals.inbox import entries, follow
from cdp_torchrec.data.prepare.arrivals.kafka import TopicError, client_settings, land
from cdp_torchrec.data.prepare.arrivals.landed import OFFSETS, Landed
from cdp_torchrec.data.prepare.arrivals.messages import Kind
from cdp_torchrec.data.prepare.workplace import PreparationError
from cdp_torchrec.data.schema import DatasetError
from tests.conftest import MakeOnce
from tests.data.appended_log import DAY_MS, DAYS, cut, fill
from tests.data.staged_log import behaviour, random_log, read_rows, request
from tests.data.test_append import raw_rows
from tests.largest_file import largest_file

confluent_kafka = pytest.importorskip(
    "confluent_kafka", reason="needs the extra: pip install 'cdp_torchrec[kafka]'"
)

TOPICS: dict[str, Kind] = {"shown": "requests", "done": "behaviours"}


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> Path:
    """Do not write into it."""
    return make_once("appended", fill)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(kafka, "_POLL_S", 0.05)
    return new_broker()


def new_broker() -> Any:
    """It ends with the producer."""
    settings = {"bootstrap.servers": "its own", "test.mock.num.brokers": 1, "log_level": 0}
    return confluent_kafka.Producer(settings)


def address(broker: Any) -> str:
    [found] = broker.list_topics(timeout=10).brokers.values()
    return f"{found.host}:{found.port}"


@pytest.fixture
def sent(broker: Any) -> Any:
    """That of `appended_log`, four days, and what tells that the last one is over."""
    requests, behaviours = (
        [row for day in range(4) for row in cut(rows, day)] for rows in random_log(0)
    )
    end = requests[-1] | {"request_id": "the end", "timestamp": 4 * DAY_MS + 2000}
    for topic, rows in (("shown", [*requests, end]), ("done", behaviours)):
        for row in sorted(rows, key=lambda row: row["timestamp"]):
            broker.produce(topic, json.dumps(row).encode())
    broker.flush(10)
    return broker


def landing(made: Path, inbox: Path, broker: Any, **settings: Any) -> Iterator[tuple[Path, Landed]]:
    inbox.mkdir(exist_ok=True)
    client = client_settings(address(broker), None)
    day: dict[str, Any] = {"window_s": 86_400, "lateness_s": 1.0, "idle_timeout_s": 0.0}
    return land(made / "before", inbox, TOPICS, client, **day | settings)


@pytest.mark.slow
def test_what_is_sent_becomes_what_is_appended_whoever_was_killed(
    made: Path, tmp_path: Path, sent: Any
) -> None:
    inbox = tmp_path / "inbox"
    for name in DAYS:  # each process ends behind its first entry
        entry, landed = next(landing(made, inbox, sent))
        assert entry.name == f"{name}T00-00-00"
        assert landed.refused == landed.repeated == 0
    assert list(landing(made, inbox, sent)) == []
    dataset = shutil.copytree(made / "before", tmp_path / "data")
    names = [day.name for day in follow(dataset, inbox, idle_timeout_s=0)]
    found = read_rows(dataset, *(f"days/{name}/requests" for name in names))
    whole = read_rows(made / "grown", *(f"days/{name}/requests" for name in DAYS))
    assert raw_rows(dataset, found) == raw_rows(made / "grown", whole)


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_goes_on(
    made: Path, tmp_path: Path, broker: Any
) -> None:
    rng, rows = random.Random(0), 8_000
    for number in range(rows):
        moment = DAY_MS + number * 10_000 + rng.randrange(1_000)
        for topic, row in (
            ("many-shown", request(number, timestamp=moment)),
            ("many-done", behaviour(item=f"i{number}", timestamp=moment)),
        ):
            broker.produce(topic, json.dumps(row).encode())
        broker.poll(0)
    broker.flush(30)
    line = ["kafka", str(made / "before"), "--inbox", str(tmp_path), "--brokers", address(broker)]
    line += ["--requests", "many-shown", "--behaviours", "many-done", "--lateness", "2"]
    command = f"from cdp_torchrec.commands.prepare_data import main; main({line})"
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(rng.randrange(2, 8)):  # what it does, then entries that have landed
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
    prepare_data.main([*line, "--idle-timeout", "0"])
    assert len(entries(tmp_path)) == 22  # whole hours of 80,000 s
    for table, column, mark in (("requests", "request_id", "r"), ("behaviours", "item", "i")):
        found = [pq.read_table(entry / table)[column].to_pylist() for entry in entries(tmp_path)]
        names = [name for part in found for name in part]
        assert sorted(names) == sorted(f"{mark}{n}" for n in range(22 * 360))


def test_a_place_that_its_topic_does_not_have_is_an_error(
    made: Path, tmp_path: Path, sent: Any
) -> None:
    inbox = tmp_path / "inbox"
    entry, landed = next(landing(made, inbox, sent))
    places = landed.model_dump()
    places["places"]["shown"][0] |= {"first": 10_000, "read": 10_000}
    (entry / OFFSETS).write_text(json.dumps(places))
    with pytest.raises(TopicError, match=r"'shown', partition 0: reading goes on at message 10000"):
        list(landing(made, inbox, sent))
    (entry / OFFSETS).write_text("{}")
    with pytest.raises(DatasetError, match=f"{OFFSETS}: is damaged"):
        list(landing(made, inbox, sent))


def test_a_topic_that_is_gone_and_a_broker_that_is_gone_are_one_message(
    made: Path, tmp_path: Path, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.produce("done", b"{}")
    broker.flush(10)
    with pytest.raises(TopicError, match=r"topic 'shown' at .*: Broker: Unknown topic") as gone:
        list(landing(made, tmp_path, broker))
    assert "\n" not in str(gone.value)
    monkeypatch.setattr(kafka, "_REACH_S", 0.3)
    client = client_settings("127.0.0.1:1", None)
    with pytest.raises(TopicError, match=r"^127.0.0.1:1: no broker can be reached within 0.3 s"):
        list(land(made / "before", tmp_path, TOPICS, client))


def send_a_day(producer: Any) -> None:
    """A request of a day, and what tells that the day is over."""
    for topic, rows in (
        ("shown", [request(900 + day, timestamp=day * DAY_MS) for day in (1, 3)]),
        ("done", [behaviour(timestamp=3 * DAY_MS)]),
    ):
        for row in rows:
            producer.produce(topic, json.dumps(row).encode(), partition=0)
    producer.flush(10)


def test_a_topic_that_is_deleted_while_it_is_read_is_one_message(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "_POLL_S", 0.05)
    monkeypatch.setattr(kafka, "_LOOK_EVERY_S", 0.1)
    library = ctypes.CDLL(confluent_kafka.cimpl.__file__)  # Python has no call that deletes
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    for function in (library.rd_kafka_new, library.rd_kafka_conf_new):
        function.restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
    settings = ctypes.c_void_p(library.rd_kafka_conf_new())
    handle = ctypes.c_void_p(library.rd_kafka_new(0, settings, None, ctypes.c_size_t(0)))
    cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(handle, 1))
    brokers = library.rd_kafka_mock_cluster_bootstraps(cluster).decode()
    producer = confluent_kafka.Producer({"bootstrap.servers": brokers, "log_level": 0})
    send_a_day(producer)
    reading = landing(made, tmp_path, producer, idle_timeout_s=None)
    assert next(reading)[1].requests == 1
    unknown = confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART
    library.rd_kafka_mock_topic_set_error(cluster, b"shown", unknown)
    with pytest.raises(TopicError, match=r"topic 'shown' at .*: Broker: Unknown topic") as gone:
        next(reading)
    assert "\n" not in str(gone.value)
    assert [entry.name for entry in entries(tmp_path)] == ["1970-01-02T00-00-00"]


def test_a_broker_that_goes_away_while_it_is_read_is_one_message(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "_POLL_S", 0.05)
    monkeypatch.setattr(kafka, "_LOOK_EVERY_S", 0.1)
    broker = new_broker()
    send_a_day(broker)
    reading = landing(made, tmp_path, broker, idle_timeout_s=None)
    assert next(reading)[1].requests == 1
    monkeypatch.setattr(kafka, "_REACH_S", 0.3)
    del broker  # and with it the server that runs in it
    with pytest.raises(TopicError, match=r"no broker can be reached within 0\.3 s"):
        next(reading)


def test_without_the_client_the_extra_is_named(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(TopicError, match=r"pip install 'cdp_torchrec\[kafka\]'"):
        list(land(made / "before", tmp_path, TOPICS, client_settings("a:1", None)))


def test_two_that_land_at_once_are_an_error(made: Path, tmp_path: Path, sent: Any) -> None:
    at_work = landing(made, tmp_path, sent)
    next(at_work)
    with pytest.raises(DatasetError, match="another process lands there"):
        list(landing(made, tmp_path, sent))


def test_a_full_disk_is_one_message_and_leaves_what_had_landed(
    made: Path, tmp_path: Path, sent: Any
) -> None:
    with (
        largest_file(1500),
        pytest.raises(PreparationError, match=r"goes on: .*too large$") as full,
    ):
        list(landing(made, tmp_path, sent))
    assert str(full.value).startswith(f"{tmp_path} has what has landed")
    assert list(tmp_path.iterdir()) == []
    assert next(landing(made, tmp_path, sent))[1].requests > 0


def test_settings_of_the_client_are_those_of_librdkafka(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text("\"security.protocol\" = 'SASL_SSL'")
    assert client_settings("a:1", file) == {
        "security.protocol": "SASL_SSL",
        "bootstrap.servers": "a:1",
    }
    for text, message in (
        ("security.protocol = 'SASL_SSL'", "'security' is no setting .* put quotes around it"),
        ("\"auto.offset.reset\" = 'latest'", "cannot be set: offsets are kept in the inbox"),
        ("x", "client.toml: cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            client_settings("a:1", file)
    file.write_text("\"securty.protocol\" = 'SASL_SSL'")
    (tmp_path / "inbox").mkdir()
    misspelt = client_settings("a:1", file)
    with pytest.raises(ConfigError, match=r'librdkafka: No such .* "securty.protocol"'):
        list(land(made / "before", tmp_path / "inbox", TOPICS, misspelt))


def test_the_command_says_what_landed(
    made: Path, tmp_path: Path, sent: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["kafka", str(made / "before"), "--inbox", str(tmp_path), "--brokers", address(sent)]
    line += ["--requests", "shown", "--window", "86400", "--lateness", "1", "--idle-timeout", "0"]
    prepare_data.main([*line, "--behaviours", "done"])
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in said[1:-1]] == list(map(str, entries(tmp_path)))
    assert " requests, " in said[1] and said[1].endswith(" of before, 0 refused")
    assert said[-1] == f"{address(sent)}: no message for 0 s"
    with pytest.raises(ConfigError, match="--requests and --behaviours: shown cannot be both"):
        prepare_data.main([*line, "--behaviours", "shown"])
