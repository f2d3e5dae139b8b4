"""A checkpoint of any plan and number of ranks continues under any other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cdp_torchrec.experiment import build_experiment, make_checkpointer
from cdp_torchrec.run.records import Progress
from cdp_torchrec.run.saved import saved_checkpoints
from tests.distributed.plans.cases import (
    CPU,
    LAYOUTS,
    PLANS_OF,
    Case,
    Layout,
    cases,
    config,
    run_phases,
    train_until,
    whole_state,
)
from tests.whole_matrix import WHOLE_MATRIX

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(3600)]

SAVED_AT = 3
TOLERANCE = 1e-6
OPTIMIZERS = ["rowwise_adagrad"]
if WHOLE_MATRIX:  # else test_groups.py does it with four cases of Adam
    OPTIMIZERS = ["adam", "rowwise_adagrad"]


@dataclass(frozen=True)
class Saved:
    """What a run was when its checkpoint was written, and its next loss."""

    state: dict[str, Tensor]
    progress: Progress
    next_loss: float


@dataclass(frozen=True)
class Continued:
    """A checkpoint under another plan."""

    num_tensors: int
    different: list[str]
    """Keys that are missing, left over, or not bit-equal."""
    keeps_position: bool
    loss_difference: float


Pairs = dict[tuple[str, Case, Case], Continued]
"""By optimizer, saved and loaded case."""


Chosen = Mapping[str, Sequence[Case]]
"""By optimizer."""


def save_under(layout: Layout, dataset: Path, chosen: Chosen, folder: Path) -> None:
    """Train each case to its checkpoint, remember its state, and go one step further."""
    for optimizer, case in _of(layout, chosen):
        run_dir = folder / optimizer / str(case)
        experiment = build_experiment(config(dataset, "cdp_timestep", optimizer, case.plan), CPU)
        checkpointer = make_checkpointer(experiment, run_dir)
        start = Progress(step=0, position=0)
        _, progress = train_until(experiment, start, SAVED_AT, checkpointer)
        state = whole_state(experiment)
        (next_loss,), _ = train_until(experiment, progress, SAVED_AT + 1)
        if dist.get_rank() == 0:
            torch.save(Saved(state, progress, next_loss), run_dir / "saved.pt")


def load_under(layout: Layout, dataset: Path, chosen: Chosen, folder: Path) -> Pairs:
    """Continue by one step what each case of a layout continues."""
    found: Pairs = {}
    for optimizer, target in _of(layout, chosen):
        experiment = build_experiment(config(dataset, "cdp_timestep", optimizer, target.plan), CPU)
        checkpointer = make_checkpointer(experiment, folder / "unused")
        parallelized = experiment.parallelized
        for source in chosen[optimizer]:
            run_dir = folder / optimizer / str(source)
            (checkpoint,) = saved_checkpoints(run_dir / "checkpoints")
            saved: Saved = torch.load(run_dir / "saved.pt", weights_only=False)
            progress = checkpointer.load(checkpoint, parallelized.model, parallelized.optimizer)
            state = whole_state(experiment)
            (loss,), _ = train_until(experiment, progress, SAVED_AT + 1)
            found[optimizer, source, target] = Continued(
                num_tensors=len(saved.state),
                different=_different(saved.state, state),
                keeps_position=progress == saved.progress,
                loss_difference=abs(loss - saved.next_loss),
            )
    return found


def _of(layout: Layout, chosen: Chosen) -> list[tuple[str, Case]]:
    return [(o, case) for o, cases in chosen.items() for case in cases if case.layout == layout]


def _different(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    return [
        key
        for key in sorted({*first, *second})
        if key not in first or key not in second or not torch.equal(first[key], second[key])
    ]


def reshard(dataset: Path, chosen: Chosen, folder: Path) -> Pairs:
    """Pairs of the chosen cases of an optimizer."""
    layouts = [layout for layout in LAYOUTS if _of(layout, chosen)]
    phases = [(layout, function) for function in (save_under, load_under) for layout in layouts]
    parts = run_phases(phases, dataset, chosen, folder)[len(layouts) :]
    return {pair: continued for part in parts for pair, continued in part.items()}


def check(found: Pairs, chosen: Chosen) -> None:
    """Every pair is there and is exact."""
    assert found.keys() == {
        (o, *pair) for o, cases in chosen.items() for pair in product(cases, repeat=2)
    }
    for (optimizer, source, target), continued in found.items():
        pair = f"{optimizer}: {source} -> {target}"
        assert continued.different == [], pair
        assert continued.keeps_position, pair
        assert continued.loss_difference <= (0 if source == target else TOLERANCE), pair


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_checkpoints_of_every_plan_and_layout_continue_under_every_layout(
    tiny_dataset: Path, tmp_path: Path, optimizer: str
) -> None:
    chosen = {optimizer: cases(optimizer)}
    found = reshard(tiny_dataset, chosen, tmp_path)
    print(_table(optimizer, chosen[optimizer], found))
    check(found, chosen)
    assert {case.plan for case in chosen[optimizer]} == {*PLANS_OF[optimizer]}
    assert {case.layout.world_size for case in chosen[optimizer]} == {1, 2, 4}


def _table(optimizer: str, chosen: Sequence[Case], found: Pairs) -> str:
    """Markdown: a row per saved case, a column per loaded one; differences of the next loss."""
    tensors = {continued.num_tensors for continued in found.values()}
    differing = sum(bool(continued.different) for continued in found.values())
    moved = sum(not continued.keeps_position for continued in found.values())
    lines = [
        f"\n{optimizer}: {len(found)} pairs, {sorted(tensors)} tensors of model and optimizer "
        f"state each; pairs with a tensor that is not bit-equal after loading: {differing}; with "
        f"another data position: {moved}. Cells: difference of the next loss from the "
        f"uninterrupted run; = is bit-equal, ! a tensor differs.\n",
        "| saved \\ loaded | " + " | ".join(map(str, chosen)) + " |",
        "|---" * (1 + len(chosen)) + "|",
    ]
    for source in chosen:
        cells = []
        for target in chosen:
            continued = found[optimizer, source, target]
            loss = continued.loss_difference
            cells.append(("!" if continued.different else "") + (f"{loss:.0e}" if loss else "="))
        lines.append(f"| {source} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
