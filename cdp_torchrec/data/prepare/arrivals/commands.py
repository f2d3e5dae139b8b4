"""The commands of prepare_data that go on while a log grows: arguments, and what they say."""

import argparse
from pathlib import Path

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.data.days import load_days
from cdp_torchrec.data.plausibility import judge_days
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.schema import Day, load_schema

FOLLOW = """Append what arrives in a directory, entry by entry in the order of their names, and wait
for the next one. An entry is a directory that becomes the period of its name, a date
(2025-02-10) or a date and a time (2025-02-10T13-00-00), with requests/ and behaviours/ as for
`append`, each row later than those of the entry before. It is read as soon as a file _SUCCESS is
in it (or in both folders, as Spark leaves it): write that last. What was appended is recorded with
its rows, so the same line goes on wherever it was stopped or killed. Entries that were appended may
be removed. An entry that comes behind a later one is an error. With --mapping an entry has the
files that the mapping names instead of the two folders, as for `append`."""

KAFKA = """Read two topics of JSON messages, and land what they say in INBOX, an entry for each hour
(--window): from there `follow` takes it. A message of TOPIC_OF_REQUESTS is one result page, with
the columns of requests/*.parquet; one of the other is one action, with those of behaviours/. An
entry lands when every partition has been read to a moment --lateness behind the end of its hour;
what comes later than that, or cannot be read, goes to the entry's refused.jsonl. Offsets are kept
in the entries: killed at any moment, the same line goes on, and each message lands once. Needs
`pip install 'cdp_torchrec[kafka]'`."""

_MOST_THREADS = 1024
"""The engine starts as many as it is told, for minutes if they are a million."""


def add_follow(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `follow`."""
    parser = commands.add_parser(
        "follow", help="append what arrives in a directory", description=FOLLOW
    )
    parser.add_argument("dataset", type=Path, metavar="DIR", help="dataset directory")
    parser.add_argument(
        "--inbox", type=Path, required=True, metavar="INBOX", help="where entries arrive"
    )
    add_mapping(parser, "MAPPING.toml by which the files of an entry are read, and key=value")
    _add_idle_timeout(parser)
    add_limits(parser)
    parser.set_defaults(run=follow)


def follow(options: argparse.Namespace) -> None:
    """Append what arrives in an inbox."""
    dataset: Path = options.dataset
    load_schema(dataset)  # says what is wrong, before the engine is imported
    mapping = load_config(MappingConfig, options.mapping) if options.mapping else None

    from cdp_torchrec.data.prepare.arrivals import inbox
    from cdp_torchrec.data.prepare.database import EngineLimits
    from cdp_torchrec.stopped_by_signals import stopped_by_signals

    limits = EngineLimits(memory_gib=options.memory, num_threads=options.threads)
    with stopped_by_signals(f"{dataset} has what was appended; the same line goes on"):
        print(f"{options.inbox}: what arrives is appended to {dataset}", flush=True)
        days = inbox.follow(
            dataset,
            options.inbox,
            mapping=mapping,
            limits=limits,
            idle_timeout_s=options.idle_timeout,
        )
        for day in days:
            say_appended(dataset, day)
    print(f"{options.inbox}: nothing new for {options.idle_timeout:g} s")


def add_kafka(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `kafka`."""
    parser = commands.add_parser("kafka", help="land topics in such a directory", description=KAFKA)
    parser.add_argument(
        "dataset", type=Path, metavar="DIR", help="dataset directory, whose columns are read"
    )
    parser.add_argument(
        "--inbox", type=Path, required=True, metavar="INBOX", help="where entries land"
    )
    parser.add_argument(
        "--brokers", required=True, metavar="HOST:PORT,...", help="some brokers of the cluster"
    )
    parser.add_argument("--requests", required=True, metavar="TOPIC_OF_REQUESTS", help="a topic")
    parser.add_argument("--behaviours", required=True, metavar="TOPIC", help="another one")
    parser.add_argument(
        "--client",
        type=Path,
        metavar="FILE.toml",
        help='settings of librdkafka, such as "security.protocol" = "SASL_SSL"',
    )
    parser.add_argument(
        "--window",
        type=_whole_seconds,
        default=3600,
        metavar="SECONDS",
        help="log time in an entry (3600)",
    )
    parser.add_argument(
        "--lateness",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how much later than others a message may come (60)",
    )
    parser.add_argument(
        "--max-refused",
        type=_share,
        default=0.01,
        metavar="SHARE",
        help="end when more of the messages since the last entry cannot be used (0.01)",
    )
    _add_idle_timeout(parser)
    parser.set_defaults(run=kafka)


def kafka(options: argparse.Namespace) -> None:
    """Land topics in an inbox."""
    load_schema(options.dataset)
    if options.requests == options.behaviours:
        raise ConfigError(f"--requests and --behaviours: {options.requests} cannot be both")

    from cdp_torchrec.data.prepare.arrivals.kafka import client_settings, land
    from cdp_torchrec.stopped_by_signals import stopped_by_signals

    inbox: Path = options.inbox
    landing = land(
        options.dataset,
        inbox,
        {options.requests: "requests", options.behaviours: "behaviours"},
        client_settings(options.brokers, options.client),
        window_s=options.window,
        lateness_s=options.lateness,
        max_refused=options.max_refused,
        idle_timeout_s=options.idle_timeout,
    )
    with stopped_by_signals(f"{inbox} has what has landed; the same line goes on"):
        print(f"{options.brokers}: what is sent lands in {inbox}", flush=True)
        for entry, landed in landing:
            print(
                f"{entry}: {landed.requests:,} requests, {landed.behaviours:,} behaviours, "
                f"{landed.repeated:,} repeated, {landed.before:,} of before, "
                f"{landed.refused:,} refused",
                flush=True,
            )
    print(f"{options.brokers}: no message for {options.idle_timeout:g} s")


def say_appended(dataset: Path, day: Day) -> None:
    """One line on a day that was appended, and one on everything that is doubtful about it."""
    new = {name: e.num_ids - day.entities_before[name].num_ids for name, e in day.entities.items()}
    print(
        f"{dataset}: appended {day.name}: {day.requests.requests:,} requests, "
        f"{day.requests.impressions:,} impressions, {day.requests.clicks:,} clicks, "
        f"{day.num_behaviours:,} behaviours; new ids: "
        f"{', '.join(f'{count:,} {name}' for name, count in new.items() if count) or 'none'}",
        flush=True,
    )
    base = load_schema(dataset)
    for finding in judge_days(dataset, base, load_days(dataset, base))[day.name]:
        print(f"warning: {day.name}: {finding.text}", flush=True)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """How much of the machine the engine uses."""
    parser.add_argument(
        "--memory", type=_gib, default=4.0, metavar="GIB", help="memory of the engine (4)"
    )
    parser.add_argument("--threads", type=_threads, default=2, help="threads of the engine (2)")


def add_mapping(parser: argparse.ArgumentParser, what: str) -> None:
    """How the files of a mapped log are read, where a command does without, too."""
    parser.add_argument("--mapping", nargs="+", metavar="SETTING", help=what)


def _add_idle_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--idle-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="end when nothing new has come for so long; 0 takes what is there; default: never",
    )


def _seconds(text: str) -> float:
    seconds = _number(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds")
    return seconds


def _whole_seconds(text: str) -> int:
    seconds = _seconds(text)
    if seconds < 1 or seconds != int(seconds):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of seconds")
    return int(seconds)


def _gib(text: str) -> float:
    gib = _number(text)
    if not 0 < gib < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no size above 0 in GiB")
    return gib


def _threads(text: str) -> int:
    threads = _number(text)
    if not 1 <= threads <= _MOST_THREADS or threads != int(threads):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of threads, 1 to {_MOST_THREADS}")
    return int(threads)


def _share(text: str) -> float:
    share = _number(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no share, 0 to 1")
    return share


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")  # which is no number of anything
