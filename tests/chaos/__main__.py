"""Random faults, many times: what survives, what is refused, and what is lost, wrong or hangs.

    python -m tests.chaos [--faults N] [--seed S] [--only KIND ...] [--folder DIR]

Every fault has a number, and with the seed it decides all that is random: --first N --faults 1 does
that one again. Exit code 1 if any fault is lost, wrong, hangs, or ends in a traceback.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from random import Random

from cdp_torchrec.progress import progress
from cdp_torchrec.text_table import markdown_table
from tests.chaos import data_faults, launcher_faults, server_faults, training_faults
from tests.chaos.disk import NoDiskError
from tests.chaos.outcome import Outcome, Verdict
from tests.chaos.world import World, make_world

Fault = Callable[[Path, Random], Outcome]


def main() -> int:
    """Do the faults, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.chaos")
    parser.add_argument("--faults", type=int, default=300, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", metavar="KIND", help="of fault; all by default")
    parser.add_argument("--folder", type=Path, help="where the world is kept; temporary by default")
    options = parser.parse_args()

    start = time.monotonic()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        world = World(folder / "world")
        if not world.artifact.exists():
            shutil.rmtree(world.folder, ignore_errors=True)
            make_world(world.folder, artifact=True)
        kinds = _kinds(world, folder, stack)
        if options.only:
            kinds = {name: kinds[name] for name in options.only}
        counts: dict[str, Counter[Verdict]] = {name: Counter() for name in kinds}
        bad = []
        numbers = range(options.first, options.first + options.faults)
        for number in progress(numbers, "faults", unit="faults"):
            random = Random(f"{options.seed}/{number}")
            name = list(kinds)[number % len(kinds)]
            scratch = folder / f"fault-{number}"
            scratch.mkdir()
            try:
                outcome = kinds[name](scratch, random)
            except NoDiskError as error:
                print(f"{number} {name}: not possible here: {error}")
                continue
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            counts[name][outcome.verdict] += 1
            if not outcome.is_allowed:
                bad.append(f"{number} {name}: {outcome.verdict}: {outcome.detail}")
                print(bad[-1], flush=True)
    print(_table(counts))
    print(f"{sum(map(Counter.total, counts.values()))} faults, {time.monotonic() - start:.0f} s")
    return 1 if bad else 0


def _kinds(world: World, folder: Path, stack: ExitStack) -> Mapping[str, Fault]:
    question = server_faults.first_question(world)
    server = stack.enter_context(
        server_faults.served(world.artifact, question, world.dataset, folder)
    )

    def on(fault: Callable[[World, Path, Random], Outcome]) -> Fault:
        return lambda scratch, random: fault(world, scratch, random)

    return {
        "killed training": on(training_faults.killed_at_a_random_moment),
        "killed checkpoint": on(training_faults.killed_while_a_checkpoint_appears),
        "damaged run": on(training_faults.damaged_run),
        "full disk, training": on(training_faults.full_disk),
        "dead launcher": on(launcher_faults.dead_launcher),
        "stopped rank": on(launcher_faults.stopped_rank),
        "killed preparation": on(data_faults.killed_preparation),
        "damaged dataset": on(data_faults.damaged_dataset),
        "full disk, preparation": on(data_faults.full_disk),
        "damaged artifact": lambda scratch, random: server_faults.damaged_artifact(
            world, question, scratch, random
        ),
        "hostile request": lambda scratch, random: server_faults.hostile_request(server, random),
    }


def _table(counts: Mapping[str, Counter[Verdict]]) -> str:
    rows = [[name, *(str(found[verdict]) for verdict in Verdict)] for name, found in counts.items()]
    return markdown_table(["fault", *Verdict], rows)


if __name__ == "__main__":
    sys.exit(main())
