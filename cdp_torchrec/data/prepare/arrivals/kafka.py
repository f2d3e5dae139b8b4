"""Topics of Kafka land in an inbox; from there on they are files like all others.

Where to read on is said by the entries of the inbox, not by the group of a consumer: offsets and
rows cannot come apart. Needs confluent-kafka (`pip install 'cdp_torchrec[kafka]'`).
"""

import logging
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.days import load_grown_schema
from cdp_torchrec.data.prepare.arrivals.inbox import entries
from cdp_torchrec.data.prepare.arrivals.landed import OFFSETS, Landed, newest_landed, nothing_landed
from cdp_torchrec.data.prepare.arrivals.landing import Landing, Partition
from cdp_torchrec.data.prepare.arrivals.messages import Kind, row_formats
from cdp_torchrec.data.prepare.day_checks import has_click_probability, last_moment
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.prepare.workplace import explained, held
from cdp_torchrec.user_error import UserError

if TYPE_CHECKING:
    from confluent_kafka import Consumer

logger = logging.getLogger(__name__)

_REACH_S = 10.0
_POLL_S = 1.0
_MESSAGES = 1_000
_LOOK_EVERY_S = 30.0
_OWN = {
    "bootstrap.servers": "--brokers",
    "enable.auto.commit": "offsets are kept in the inbox",
    "auto.offset.reset": "offsets are kept in the inbox",
    "enable.partition.eof": "the end of a partition has to be known",
    "allow.auto.create.topics": "a topic that is gone has to be known",
}


class TopicError(UserError, OSError):
    """Topics cannot be read."""


def land(
    dataset: Path,
    inbox: Path,
    topics: Mapping[str, Kind],
    client: Mapping[str, Any],
    *,
    window_s: int = 3600,
    lateness_s: float = 60.0,
    max_refused: float = 0.01,
    idle_timeout_s: float | None = None,
) -> Iterator[tuple[Path, Landed]]:
    """Read topics from where they were read to, and land an entry for each window that has ended.

    Args:
        dataset: whose columns the messages have; those of before its end are passed over.
        inbox: directory in which entries appear.
        topics: what each of them holds.
        client: settings of librdkafka, `bootstrap.servers` among them.
        window_s: length of a window.
        lateness_s: how much later than others a message may come.
        max_refused: share of the messages that may be unusable.
        idle_timeout_s: seconds without a message after which it ends, at the ends of all
            partitions; None: never.

    Yields:
        Each entry, and what it says of itself.

    Raises:
        DatasetError: there is no dataset or inbox, another process lands there, or too many
            messages are unusable.
        PreparationError: the inbox cannot be written.
        TopicError: brokers cannot be reached, a topic is not there, or has lost messages.
    """
    entries(inbox)  # says what is wrong with it
    schema = load_grown_schema(dataset)
    spec = DatasetSpec.of_dataset(schema)
    formats = row_formats(spec, has_probability=has_click_probability(dataset))
    end = last_moment(dataset, schema)
    with (
        held(inbox, f"{inbox}: another process lands there; wait for its end"),
        explained(f"{inbox} has what has landed, the same line goes on"),
    ):
        landing = Landing(
            inbox,
            formats,
            newest_landed(inbox) or nothing_landed(until_ms=end + 1),
            window_ms=1000 * window_s,
            lateness_ms=int(1000 * lateness_s),
            max_refused=max_refused,
        )
        with closing(landing), _consumer(client) as consumer:
            reader = _Reader(consumer, topics, landing, str(client["bootstrap.servers"]))
            idle_since = time.monotonic()
            while True:
                if reader.read():
                    idle_since = time.monotonic()
                yield from landing.land()
                idle_s = time.monotonic() - idle_since
                if idle_timeout_s is not None and landing.is_at_end and idle_s >= idle_timeout_s:
                    break
        if landing.num_waiting:
            logger.warning(
                "%s rows of a window that has not ended stay in their topics",
                f"{landing.num_waiting:,}",
            )


def client_settings(brokers: str, file: Path | None) -> dict[str, Any]:
    """What librdkafka is given.

    Args:
        brokers: HOST:PORT,... to begin with.
        file: TOML with further settings, such as "security.protocol"; None: none.

    Raises:
        ConfigError: the file is unreadable, or sets what is decided here.
    """
    found: dict[str, Any] = {}
    if file is not None:
        try:
            found = tomllib.loads(file.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read: {error}") from error
    for name, value in found.items():
        if name in _OWN:
            raise ConfigError(f"{file}: '{name}' cannot be set: {_OWN[name]}")
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(f"{file}: '{name}' is no setting of librdkafka; put quotes around it")
    return found | {"bootstrap.servers": brokers}


@contextmanager
def _consumer(client: Mapping[str, Any]) -> "Iterator[Consumer]":
    try:
        import confluent_kafka
    except ImportError as error:
        raise TopicError(
            "confluent-kafka is not installed: pip install 'cdp_torchrec[kafka]'"
        ) from error

    settings = {
        "group.id": "cdp_torchrec",  # asked for by the client; nothing is kept in it
        "log_level": 2,  # what cannot be reached is said here, once
        **client,
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
        "allow.auto.create.topics": False,
    }
    try:
        consumer = confluent_kafka.Consumer(settings)
    except confluent_kafka.KafkaException as error:
        raise ConfigError(f"settings of librdkafka: {error.args[0].str()}") from error
    try:
        yield consumer
    finally:
        consumer.close()


class _Reader:
    """Reads all partitions of some topics into a landing."""

    def __init__(
        self, consumer: "Consumer", topics: Mapping[str, Kind], landing: Landing, brokers: str
    ) -> None:
        self._consumer = consumer
        self._topics = topics
        self._landing = landing
        self._brokers = brokers
        self._known: set[Partition] = set()
        self._paused: set[Partition] = set()
        self._looked_at = -_LOOK_EVERY_S

    def read(self) -> bool:
        """Read some messages; whether there were any.

        Raises:
            TopicError: as `land`.
        """
        from confluent_kafka import KafkaError

        if time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
            self._look_for_partitions()
            self._looked_at = time.monotonic()
        has_read = False
        for message in self._consumer.consume(_MESSAGES, _POLL_S):
            error, topic = message.error(), str(message.topic())
            partition = (topic, int(message.partition() or 0))
            if error is None:
                offset = int(message.offset() or 0)
                self._landing.add(self._topics[topic], partition, offset, message.value())
                has_read = True
            elif error.code() == KafkaError._PARTITION_EOF:
                self._landing.at_end(partition)
            elif error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
                self._looked_at = -_LOOK_EVERY_S  # which says whether they come back
            else:
                raise TopicError(f"{_named(*partition)}: {error.str()}")
        self._hold_back()
        return has_read

    def _hold_back(self) -> None:
        """Let partitions that are far ahead wait for the others: what they hold fills the disk."""
        from confluent_kafka import TopicPartition

        ahead = self._landing.ahead()
        if stop := ahead - self._paused:
            self._consumer.pause([TopicPartition(*partition) for partition in stop])
        if go_on := self._paused - ahead:
            self._consumer.resume([TopicPartition(*partition) for partition in go_on])
        self._paused = ahead

    def _look_for_partitions(self) -> None:
        """Check that all topics are there, and begin to read partitions that are new."""
        from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition

        new = []
        for topic in self._topics:
            try:
                found = self._consumer.list_topics(topic, timeout=_REACH_S).topics[topic]
            except KafkaException as error:
                raise TopicError(
                    f"{self._brokers}: no broker can be reached within {_REACH_S:g} s: "
                    f"{error.args[0].str()}"
                ) from error
            if found.error is not None:
                raise TopicError(f"topic '{topic}' at {self._brokers}: {found.error.str()}")
            for number in sorted(found.partitions):
                if (topic, number) in self._known:
                    continue
                first = self._landing.open_partition((topic, number))
                if first is not None:
                    self._check_place(TopicPartition(topic, number, first))
                offset = OFFSET_BEGINNING if first is None else first
                new.append(TopicPartition(topic, number, offset))
                self._known.add((topic, number))
        if new:
            self._consumer.incremental_assign(new)

    def _check_place(self, place: Any) -> None:
        from confluent_kafka import KafkaException

        try:
            low, high = self._consumer.get_watermark_offsets(place, timeout=_REACH_S)
        except KafkaException as error:
            raise TopicError(
                f"{_named(place.topic, place.partition)}: {error.args[0].str()}"
            ) from error
        if not low <= place.offset <= high:
            lost = (
                f"messages {place.offset} to {low - 1} are not kept any more"
                if place.offset < low
                else "it was made anew since"
            )
            raise TopicError(
                f"{_named(place.topic, place.partition)}: reading goes on at message "
                f"{place.offset}, and it has {low} to {high - 1}: {lost}; to go on without them, "
                f"change its place in the newest {OFFSETS}"
            )


def _named(topic: str | None, partition: int | None) -> str:
    return f"topic '{topic}', partition {partition}"
