"""A fault of each kind: nothing is lost, wrong, hangs, or ends in a traceback."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.chaos import data_faults, launcher_faults, training_faults
from tests.chaos.disk import NoDiskError
from tests.chaos.outcome import Outcome
from tests.chaos.world import World, make_world
from tests.conftest import MakeOnce
from tests.whole_matrix import WHOLE_MATRIX

Fault = Callable[[World, Path, Random], Outcome]


@pytest.fixture(scope="session")
def world(make_once: MakeOnce) -> World:
    return World(make_once("chaos", lambda folder: make_world(folder, artifact=False)))


def check(outcome: Outcome) -> None:
    assert outcome.is_allowed, f"{outcome.verdict}: {outcome.detail}"


FAULTS = [
    training_faults.damaged_run,
    data_faults.killed_preparation,
    data_faults.damaged_dataset,
    data_faults.full_disk,
]
if WHOLE_MATRIX:  # else test_interrupted.py and test_lost_ranks.py in tests/distributed do the like
    FAULTS += [
        training_faults.killed_while_a_checkpoint_appears,
        training_faults.killed_at_a_random_moment,
        pytest.param(launcher_faults.dead_launcher, marks=pytest.mark.distributed),
        pytest.param(launcher_faults.stopped_rank, marks=pytest.mark.distributed),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_survived_or_said(fault: Fault, world: World, tmp_path: Path) -> None:
    try:
        check(fault(world, tmp_path, Random(0)))
    except NoDiskError as error:
        pytest.skip(f"no small disk here: {error}")
