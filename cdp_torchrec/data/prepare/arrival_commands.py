"""The commands of prepare_data that go on while a log grows: arguments, and what they say."""

import argparse
from pathlib import Path

from cdp_torchrec.data.days import load_days
from cdp_torchrec.data.plausibility import judge_days
from cdp_torchrec.data.schema import Day, load_schema

FOLLOW = """Append what arrives in a directory, entry by entry in the order of their names, and wait
for the next one. An entry is a directory that becomes the period of its name, a date
(2025-02-10) or a date and a time (2025-02-10T13-00-00), with requests/ and behaviours/ as for
`append`, each row later than those of the entry before. It is read as soon as a file _SUCCESS is
in it (or in both folders, as Spark leaves it): write that last. What was appended is recorded with
its rows, so the same line goes on wherever it was stopped or killed. Entries that were appended may
be removed. An entry that comes behind a later one is an error."""


def add_follow(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `follow`."""
    parser = commands.add_parser(
        "follow", help="append what arrives in a directory", description=FOLLOW
    )
    parser.add_argument("dataset", type=Path, metavar="DIR", help="dataset directory")
    parser.add_argument(
        "--inbox", type=Path, required=True, metavar="INBOX", help="where entries arrive"
    )
    _add_idle_timeout(parser)
    add_limits(parser)
    parser.set_defaults(run=follow)


def follow(options: argparse.Namespace) -> None:
    """Append what arrives in an inbox."""
    dataset: Path = options.dataset
    load_schema(dataset)  # says what is wrong, before the engine is imported

    from cdp_torchrec.data.prepare import inbox
    from cdp_torchrec.data.prepare.database import EngineLimits
    from cdp_torchrec.data.prepare.workplace import stopped_by_signals

    limits = EngineLimits(memory_gib=options.memory, num_threads=options.threads)
    with stopped_by_signals(f"{dataset} has what was appended; the same line goes on"):
        print(f"{options.inbox}: what arrives is appended to {dataset}", flush=True)
        for day in inbox.follow(
            dataset, options.inbox, limits=limits, idle_timeout_s=options.idle_timeout
        ):
            say_appended(dataset, day)
    print(f"{options.inbox}: nothing new for {options.idle_timeout:g} s")


def say_appended(dataset: Path, day: Day) -> None:
    """One line on a day that was appended, and one on everything that is doubtful about it."""
    new = {name: e.num_ids - day.entities_before[name].num_ids for name, e in day.entities.items()}
    print(
        f"{dataset}: appended {day.name}: {day.requests.requests:,} requests, "
        f"{day.requests.impressions:,} impressions, click rate {day.requests.click_rate:.4f}, "
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
        "--memory", type=float, default=4.0, metavar="GIB", help="memory of the engine (4)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of the engine (2)")


def _add_idle_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--idle-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="end when nothing new has come for so long; 0 takes what is there; default: never",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds")
    return seconds
