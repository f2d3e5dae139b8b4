"""The command of prepare_data that makes requests of new rows: arguments, and what it says."""

import argparse
import shlex
from pathlib import Path

from cdp_torchrec.config import load_config
from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.prepare.arrivals.commands import add_limits
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.schema import load_schema

REQUESTS = """Write new rows of a log as a file of requests, which `predict` scores as it is:
those that the preparation would make of them, in the order of time. MAPPING.toml is the one that
DIR was made by; NEW holds the files that it names. Labels, behaviours and tables that only those
need are not read and need not be there. log.only and [window] hold, and what they leave out is
counted; [split] says nothing of new rows, all of which are to be scored. Histories come from
predict's history_store, which knows what was appended to it. FILE must not exist, and is
written whole or not at all."""


def add_requests(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `requests`."""
    parser = commands.add_parser(
        "requests", help="new rows of a mapped log, to be scored", description=REQUESTS
    )
    parser.add_argument("dataset", type=Path, metavar="DIR", help="dataset directory")
    parser.add_argument(
        "--input", type=Path, required=True, metavar="NEW", help="folder of the new rows"
    )
    parser.add_argument(
        "--mapping",
        nargs="+",
        required=True,
        metavar="SETTING",
        help="MAPPING.toml of DIR, and key=value, such as tables.items.files=["
        '"../shop/items.csv"] for a table that lies elsewhere',
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="parquet file to write"
    )
    add_limits(parser)
    parser.set_defaults(run=requests)


def requests(options: argparse.Namespace) -> None:
    """Make a file of requests of new rows."""
    load_schema(options.dataset)  # says what is wrong, before the engine is imported
    mapping = load_config(MappingConfig, options.mapping)

    from cdp_torchrec.data.prepare.database import EngineLimits
    from cdp_torchrec.data.prepare.mapped.new_requests import write_new_requests

    output: Path = options.output
    limits = EngineLimits(memory_gib=options.memory, num_threads=options.threads)
    made = write_new_requests(mapping, options.input, options.dataset, output, limits=limits)
    print(
        f"{output}: {made.num_candidates:,} candidates of {made.num_requests:,} requests, "
        f"{utc(made.first_timestamp)} to {utc(made.last_timestamp)}"
    )
    file, store = shlex.quote(str(output)), shlex.quote(str(options.dataset))
    print(
        f"score them: cdp_torchrec predict ARTIFACT {file} output=scores.parquet "
        f"history_store={store}"
    )
