"""Make a dataset directory, or show what one holds.

    cdp_torchrec prepare_data LOG --input DIR --output DIR
    cdp_torchrec prepare_data generic MAPPING.toml [key=value ...] --input DIR --output DIR
    cdp_torchrec prepare_data draft FILE ... [--output mapping.toml]
    cdp_torchrec prepare_data synthetic --output DIR [LAYER.toml ...] [key=value ...]
    cdp_torchrec prepare_data append DIR --input DAY [--mapping MAPPING.toml [key=value ...]]
    cdp_torchrec prepare_data requests DIR --input NEW --mapping MAPPING.toml --output FILE
    cdp_torchrec prepare_data follow DIR --inbox INBOX [--mapping MAPPING.toml [key=value ...]]
    cdp_torchrec prepare_data kafka DIR --inbox INBOX --brokers HOST:PORT --requests TOPIC ...
    cdp_torchrec prepare_data compact DIR
    cdp_torchrec prepare_data inspect DIR
    cdp_torchrec prepare_data describe DIR [--output PAGE.html]
    cdp_torchrec prepare_data verify DIR
    cdp_torchrec prepare_data starter DIR

LOG is one of the logs below, read from its official files; `generic` reads any other by a mapping
of its columns, which `draft` makes a first version of. A dataset is written whole or not at all.
Each command has a --help of its own. In a dataset lies starter.toml, a first configuration whose
sizes come from the log; `starter` writes it anew.
"""

import argparse
import shlex
import time
from functools import partial
from pathlib import Path
from typing import get_args

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.config.sections import asks_help, help_text
from cdp_torchrec.data.days import load_grown_schema
from cdp_torchrec.data.prepare.arrivals.commands import (
    add_follow,
    add_kafka,
    add_limits,
    add_mapping,
    say_appended,
)
from cdp_torchrec.data.prepare.converters import CONVERTERS, Converter
from cdp_torchrec.data.prepare.database import EngineLimits, EngineName
from cdp_torchrec.data.prepare.mapped.commands import add_requests
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.schema import DatasetError, load_schema
from cdp_torchrec.data.synthetic.config import SyntheticConfig
from cdp_torchrec.distributed.process_group import init_process_group, run_main
from cdp_torchrec.whole_file import why_unwritable

GENERIC_USAGE = (
    "usage: cdp_torchrec prepare_data generic MAPPING.toml [key=value ...] --input DIR --output DIR"
)
GENERIC = """Any log of parquet or CSV files. MAPPING.toml says what its columns mean; key=value
change it. DIR holds the files that it names.
"""
DRAFT = """Look at the first rows of the files of a log, and write a mapping for `generic`: which
columns are user, item, time and clicks, in which unit times are, what makes a request, and which
columns are features; with a comment on every guess. Files with attributes of items or users, or
with behaviours, are found by their names and values."""
SYNTHETIC_USAGE = (
    "usage: cdp_torchrec prepare_data synthetic --output DIR [LAYER.toml ...] [key=value ...]"
)
STARTER = """Write DIR/starter.toml: batch size, passes, validation slice, minimum counts and
excluded features from the counts of the log, each with the reason and what to try instead."""
INSPECT = """Counts, time spans, ids, history and gate of DIR, and what is implausible in it; exit
code 1 if no sane log looks so, as a training would say."""
DESCRIBE = """One HTML page with the figures of DIR: click rate over time, lists and places,
histories, what a category gate lets through, ids with a row of their own at each minimum count,
leaks, untrained scorers. What stands out is said first. Exit code 1 if no sane log looks so, as a
training would say."""
VERIFY = """Read all files of DIR and compare them with the checksums in its manifest.json. Names
every file that is damaged, missing, or not written by the preparation; exit code 1 if there is one.
Trainings, evaluations and exports do the same with run.verify=true."""
APPEND = """Add a day to DIR: requests/ and behaviours/ as those that it was made of, all later than
what it has. It lies in days/<date of its first request>, and nothing else changes: ids keep their
codes, new ones get the codes behind them, and numbers are scaled as before. Trainings read it by
data.train_on and data.test_on. Whole or not at all: killed at any moment, run it again.

A dataset of `generic` takes its days by the mapping that it was made by: with --mapping, DAY holds
the files that the mapping names, those of items and users too, unless key=value says where else
they lie (tables.items.files=["../items.csv"]). Its split says nothing of a day."""
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
    if arguments[:1] == ["generic"] and asks_help(arguments):
        print(help_text(f"{GENERIC_USAGE}\n\n{GENERIC}", MappingConfig, arguments))
        return
    parser = _parser()
    options, behind = parser.parse_known_args(arguments)
    if behind:
        # key=value may go last, as everywhere; argparse takes it only beside the other settings.
        if not hasattr(options, "settings") or not all("=" in argument for argument in behind):
            parser.error(f"unrecognized arguments: {' '.join(behind)}")
        options.settings += behind
    options.run(options)


def convert(converter: Converter, options: argparse.Namespace) -> None:
    """Dataset of a log that comes with a converter."""
    limits = EngineLimits(options.memory, options.threads, options.engine)
    chosen = {name: getattr(options, name) for name in converter.keywords()}
    converter.prepare(options.input, options.output, limits=limits, **chosen)
    _say_what_is_next(options.output)


def prepare_by_mapping(options: argparse.Namespace) -> None:
    """Dataset of any log, by its mapping."""
    mapping = load_config(MappingConfig, options.settings)

    from cdp_torchrec.data.prepare.mapped.generic import prepare_generic

    limits = EngineLimits(options.memory, options.threads, options.engine)
    prepare_generic(mapping, options.input, options.output, limits=limits)
    _say_what_is_next(options.output)


def draft(options: argparse.Namespace) -> None:
    """First version of a mapping."""
    from cdp_torchrec.data.prepare.mapped.draft import NOT_USED, draft_mapping
    from cdp_torchrec.whole_file import write_whole

    output: Path = options.output
    if output.exists():
        raise DatasetError(f"{output} exists; remove it or choose another name (--output)")
    if reason := why_unwritable(output.parent):
        raise DatasetError(f"{output}: {reason}; choose another name (--output)")
    text = draft_mapping(options.files, mapping=str(output))
    write_whole(output, text)
    for line in text.splitlines():
        if line.startswith(f"# {NOT_USED}"):
            print(line.removeprefix("# "))
    print(f"wrote {output}: read what it guesses, then")
    print(f"  {next(line for line in text.splitlines() if ' generic ' in line).lstrip('# ')}")


def prepare_synthetic(options: argparse.Namespace) -> None:
    """Dataset of a simulated log."""
    config = load_config(SyntheticConfig, options.settings)

    from cdp_torchrec.data.synthetic.dataset import make_synthetic

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


def describe(options: argparse.Namespace) -> None:
    """The page of a dataset; an error, behind the page, if no sane log looks so."""
    dataset: Path = options.dataset
    load_schema(dataset)
    output: Path = options.output or dataset.resolve().with_name(f"{dataset.resolve().name}.html")
    named = "name another file with --output PAGE.html"
    if output.suffix != ".html":
        raise ConfigError(f"--output {output}: is no name of a page; {named}")
    if output.exists():
        raise ConfigError(f"{output}: is there already; remove it, or {named}")
    if reason := why_unwritable(output.parent):
        raise ConfigError(f"{output}: {reason}; {named}")

    from cdp_torchrec.data.plausibility import refuse_errors
    from cdp_torchrec.data.prepare.summary_text import describe_findings
    from cdp_torchrec.describe.write import write_page

    init_process_group()
    found = write_page(dataset, output)
    print(f"{describe_findings(found)}\n\nwrote {output}", flush=True)
    refuse_errors(dataset, found)


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

    limits = EngineLimits(memory_gib=options.memory, num_threads=options.threads)
    if options.mapping:
        mapping = load_config(MappingConfig, options.mapping)

        from cdp_torchrec.data.prepare.mapped.day import append_mapped_day

        day = append_mapped_day(mapping, options.input, options.dataset, limits=limits)
    else:
        from cdp_torchrec.data.prepare.append import append_day

        day = append_day(options.dataset, options.input, limits)
    say_appended(options.dataset, day)
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

    for converter in CONVERTERS:
        _add_converter(commands.add_parser(converter.name, help=converter.summary), converter)

    generic = commands.add_parser("generic", help="any log, by its mapping")
    generic.add_argument("settings", nargs="+", metavar="SETTING", help="mapping, or key=value")
    _add_folders(generic, metavar="DIR", source="files of the mapping")
    generic.set_defaults(run=prepare_by_mapping)

    drafting = commands.add_parser("draft", help="a mapping, to edit", description=DRAFT)
    drafting.add_argument("files", nargs="+", type=Path, metavar="FILE", help="CSV or parquet")
    drafting.add_argument(
        "--output", type=Path, default=Path("mapping.toml"), metavar="MAPPING", help="to write"
    )
    drafting.set_defaults(run=draft)

    synthetic = commands.add_parser(
        "synthetic", help="a simulated search log", description=SYNTHETIC
    )
    synthetic.add_argument("settings", nargs="*", metavar="SETTING", help="layer or key=value")
    synthetic.set_defaults(run=prepare_synthetic)
    synthetic.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="directory to make"
    )

    inspection = commands.add_parser(
        "inspect", help="counts, time spans, history, gate", description=INSPECT
    )
    inspection.add_argument("dataset", type=Path, metavar="DIR", help="dataset directory")
    inspection.set_defaults(run=inspect)

    page = commands.add_parser("describe", help="one HTML page with figures", description=DESCRIBE)
    page.add_argument("dataset", type=Path, metavar="DIR", help="dataset directory")
    page.add_argument(
        "--output",
        type=Path,
        metavar="PAGE.html",
        help="file to write; default: DIR.html, beside the dataset",
    )
    page.set_defaults(run=describe)

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
    add_mapping(addition, "MAPPING.toml by which the files of DAY are read instead, and key=value")
    add_limits(addition)
    addition.set_defaults(run=append)

    add_requests(commands)
    add_follow(commands)
    add_kafka(commands)

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


def _add_converter(parser: argparse.ArgumentParser, converter: Converter) -> None:
    parser.description = converter.description
    _add_folders(parser, metavar=converter.metavar, source=converter.source)
    for option in converter.options:
        parser.add_argument(
            option.flag,
            type=option.kind,
            default=option.default,
            metavar=option.metavar,
            help=option.help,
        )
    parser.set_defaults(run=partial(convert, converter))


def _add_folders(parser: argparse.ArgumentParser, *, metavar: str, source: str) -> None:
    """From where to where, and how much of the machine to use."""
    parser.add_argument("--input", type=Path, required=True, metavar=metavar, help=source)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="directory to make"
    )
    add_limits(parser)
    parser.add_argument(
        "--engine",
        choices=get_args(EngineName),
        default="duckdb",
        help="what sorts and joins (duckdb); spark: the cluster of spark-submit",
    )


if __name__ == "__main__":
    run_main(main)
