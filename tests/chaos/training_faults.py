"""Faults of a training: killed, told to stop, its files damaged, its disk full."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.chaos.command import Command, Ended
from tests.chaos.damage import damage_one
from tests.chaos.disk import small_disk
from tests.chaos.outcome import Outcome, Verdict
from tests.chaos.world import World, copy_of, result_of, train, train_arguments

_MOST_KILLS = 4


def killed_at_a_random_moment(world: World, scratch: Path, random: Random) -> Outcome:
    """By any signal, on one or two ranks, several times; then the same line to the end."""
    ranks = random.choice([1, 1, 2])
    kills = []
    for _ in range(random.randint(1, _MOST_KILLS)):
        number = random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        kills.append(number.name)
        command = _start(world, scratch, ranks)
        delay = random.uniform(0.0, 6.0)
        deadline = time.monotonic() + delay
        while command.is_running and time.monotonic() < deadline:
            time.sleep(0.01)
        ended = _stop(command, number, ranks, random)
        if outcome := _unless_stopped_well(ended, f"{number.name} after {delay:.2f} s"):
            return outcome
    return _finished(world, scratch, ranks, f"{ranks} ranks, {', '.join(kills)}")


def killed_while_a_checkpoint_appears(world: World, scratch: Path, random: Random) -> Outcome:
    """SIGKILL at the moment when anything changes among the checkpoints."""
    ranks = random.choice([1, 1, 2])
    command = _start(world, scratch, ranks)
    checkpoints = scratch / "run" / "checkpoints"
    changes = random.randint(1, 12)
    before = _names(checkpoints)
    while command.is_running and changes:
        if (now := _names(checkpoints)) != before:
            before, changes = now, changes - 1
    time.sleep(random.uniform(0.0, 0.01))
    _stop(command, signal.SIGKILL, ranks, random)
    return _finished(world, scratch, ranks, f"{ranks} ranks, at a change of {sorted(before)}")


def damaged_run(world: World, scratch: Path, random: Random) -> Outcome:
    """Any file of a stopped run; the newest checkpoint's files are drawn most often."""
    run_dir = copy_of(world.interrupted, scratch / "run")
    newest = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    pattern = random.choice(["**/*", f"checkpoints/{newest.name}/**/*"])
    done = damage_one(run_dir, random, pattern)
    ended = train(scratch, world.dataset, run_dir)
    outcome = judge(ended, lambda: result_of(run_dir) == world.result(), done)
    # An older checkpoint is whole, so that a damaged newest one must not end the run.
    if outcome.verdict is Verdict.CLEAR_ERROR and newest.name in done:
        return Outcome(Verdict.LOST, outcome.detail)
    return outcome


def full_disk(world: World, scratch: Path, random: Random) -> Outcome:
    """The run's disk is full at a random moment; with more space the same line goes on."""
    size = random.randint(1 << 16, 3 << 20)
    done = f"{size} bytes of disk"
    with small_disk(scratch / "disk", size) as disk:
        ended = train(scratch, world.dataset, disk / "run")
        outcome = judge(ended, lambda: result_of(disk / "run") == world.result(), done)
        if outcome.verdict is not Verdict.CLEAR_ERROR or not (disk / "run").exists():
            return outcome
        copy_of(disk / "run", scratch / "run")
    return _finished(world, scratch, 1, done)


def judge(ended: Ended, is_right: Callable[[], bool], done: str) -> Outcome:
    """Verdict on a command that was to end with a known result or a message."""
    detail = f"{done}: {ended.last_line}"
    if ended.code is None:
        return Outcome(Verdict.HANG, detail)
    if ended.has_traceback:
        return Outcome(Verdict.TRACEBACK, detail)
    if ended.code != 0:
        said = "error" in ended.output.lower()
        return Outcome(Verdict.CLEAR_ERROR if said else Verdict.TRACEBACK, detail)
    return Outcome(Verdict.SURVIVED if is_right() else Verdict.WRONG, detail)


def _start(world: World, scratch: Path, ranks: int) -> Command:
    arguments = train_arguments(world.dataset, scratch / "run")
    return Command(scratch, "train", *arguments, ranks=ranks)


def _stop(command: Command, number: signal.Signals, ranks: int, random: Random) -> Ended:
    """A signal to all ranks, as a launcher sends it, but SIGKILL to one, as the kernel does."""
    if number is signal.SIGKILL:
        command.send(number, random.randrange(ranks))
    else:
        for rank in range(ranks):
            command.send(number, rank)
    return command.wait()


def _unless_stopped_well(ended: Ended, done: str) -> Outcome | None:
    """What is wrong with the end of a training that was stopped, if anything."""
    if ended.code is None:
        return Outcome(Verdict.HANG, f"{done}: {ended.last_line}")
    if ended.has_traceback:
        return Outcome(Verdict.TRACEBACK, f"{done}: {ended.last_line}")
    return None


def _finished(world: World, scratch: Path, ranks: int, done: str) -> Outcome:
    """The same line once more must end with the result of a run that nobody disturbed."""
    run_dir = scratch / "run"
    ended = train(scratch, world.dataset, run_dir, ranks=ranks)

    def is_right() -> bool:
        expected = world.result() if ranks == 1 else world.result_on_two_ranks(scratch.parent)
        return result_of(run_dir) == expected

    outcome = judge(ended, is_right, done)
    if outcome.verdict is Verdict.CLEAR_ERROR:
        return Outcome(Verdict.LOST, outcome.detail)
    return outcome


def _names(folder: Path) -> frozenset[str]:
    return frozenset(p.name for p in folder.iterdir()) if folder.is_dir() else frozenset()
