"""Faults of a dataset: its preparation killed, its files damaged, its disk full."""

import signal
import time
from pathlib import Path
from random import Random

from tests.chaos.command import Command
from tests.chaos.damage import damage_one
from tests.chaos.disk import small_disk
from tests.chaos.outcome import Outcome, Verdict
from tests.chaos.training_faults import judge
from tests.chaos.world import World, copy_of, result_of, synthetic_settings, train


def killed_preparation(world: World, scratch: Path, random: Random) -> Outcome:
    """Nothing half-written is in the dataset's place; the same line makes it whole."""
    place = scratch / "made"
    place.mkdir()
    number = random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    command = _prepare(scratch, place / "dataset")
    delay = random.uniform(0.0, 3.0)
    deadline = time.monotonic() + delay
    while command.is_running and time.monotonic() < deadline:
        time.sleep(0.01)
    command.send(number)
    ended = command.wait()
    done = f"{number.name} after {delay:.2f} s"
    if ended.code is None:
        return Outcome(Verdict.HANG, f"{done}: {ended.last_line}")
    if ended.has_traceback:
        return Outcome(Verdict.TRACEBACK, f"{done}: {ended.last_line}")
    left = sorted(path.name for path in place.iterdir())
    if ended.code != 0 and left and number is not signal.SIGKILL:
        return Outcome(Verdict.LOST, f"{done}: left behind {left}")
    if not (place / "dataset").exists():
        again = _prepare(scratch, place / "dataset").wait()
        if again.code != 0:
            return Outcome(Verdict.LOST, f"{done}, again: {again.last_line}")
    left = sorted(path.name for path in place.iterdir())
    if left != ["dataset"]:
        return Outcome(Verdict.LOST, f"{done}: left behind {left}")
    is_same = _content(place / "dataset") == _content(world.dataset)
    return Outcome(Verdict.SURVIVED if is_same else Verdict.WRONG, done)


def damaged_dataset(world: World, scratch: Path, random: Random) -> Outcome:
    """Any file; a training that verifies its data finds it, or does not depend on it."""
    dataset = copy_of(world.dataset, scratch / "dataset")
    done = damage_one(dataset, random)
    ended = train(scratch, dataset, scratch / "run", "run.verify=true")
    return judge(ended, lambda: result_of(scratch / "run") == world.result(), done)


def full_disk(world: World, scratch: Path, random: Random) -> Outcome:
    """Of a preparation: nothing is left of it."""
    size = random.randint(1 << 14, 1 << 20)
    done = f"{size} bytes of disk"
    with small_disk(scratch / "disk", size) as disk:
        ended = _prepare(scratch, disk / "dataset").wait()
        left = sorted(path.name for path in disk.iterdir())
        if ended.code != 0 and left:
            return Outcome(Verdict.LOST, f"{done}: left behind {left}")
        return judge(ended, lambda: _content(disk / "dataset") == _content(world.dataset), done)


def _prepare(scratch: Path, dataset: Path) -> Command:
    output = ["--output", str(dataset)]
    return Command(scratch, "prepare_data", "synthetic", *output, *synthetic_settings())


def _content(dataset: Path) -> dict[str, bytes]:
    """What decides a training; the rest has dates and places."""
    folders = ("train", "test", "history", "vocabulary")
    return {
        path.relative_to(dataset).as_posix(): path.read_bytes()
        for folder in folders
        for path in sorted((dataset / folder).rglob("*"))
        if path.is_file()
    }
