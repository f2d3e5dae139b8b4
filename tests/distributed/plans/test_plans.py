"""A plan never changes the mathematics: losses and tables are those of plain PyTorch."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.constraints import _say_what_stands_in, table_constraints
from cdp_torchrec.experiment import build_experiment
from tests.distributed.plans.cases import (
    CPU,
    LAYOUTS,
    PURE,
    Case,
    Layout,
    Trained,
    cases,
    config,
    run_phases,
    train_sharded,
)
from tests.distributed.plans.plain import Plain, train_plain
from tests.distributed.plans.problems import Tables, problem
from tests.distributed.spawn import run_ranks
from tests.whole_matrix import WHOLE_MATRIX, only_whole

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]

TOLERANCE = 1e-5
"""Of losses, and of elements of tables; they move by a hundred times as much and more."""
NUM_STEPS = 20 if WHOLE_MATRIX else 6
FEW_STEPS = 6
TWO = Layout(2)
FEW = {"adam": [Case("mixed", TWO)], "rowwise_adagrad": [Case("mixed_rows", TWO)]}
Results = dict[tuple[str, Case], Trained]


def train_under(
    layout: Layout,
    dataset: Path,
    interest: str,
    chosen: Mapping[str, Sequence[Case]],
    num_steps: int,
) -> Results:
    """Results by optimizer and case, of the cases that have this layout."""
    return {
        (optimizer, case): train_sharded(config(dataset, interest, optimizer, case.plan), num_steps)
        for optimizer, cases in chosen.items()
        for case in cases
        if case.layout == layout
    }


def differences(trained: Trained, plain: Plain) -> tuple[float, float]:
    """Largest difference of a loss, and of an element of a table."""
    assert len(trained.losses) == len(plain.losses)
    assert trained.tables.keys() == plain.tables.keys()
    losses = torch.tensor(trained.losses) - torch.tensor(plain.losses)
    tables = [(trained.tables[n] - table).abs().max() for n, table in plain.tables.items()]
    return losses.abs().max().item(), torch.stack(tables).max().item()


@pytest.fixture(scope="module")
def few(tiny_dataset: Path) -> Results:
    (results,) = run_phases([(TWO, train_under)], tiny_dataset, "cdp_timestep", FEW, FEW_STEPS)
    return results


@pytest.mark.parametrize("optimizer", FEW)
def test_losses_and_tables_are_those_of_plain_pytorch(
    few: Results, tiny_dataset: Path, optimizer: str
) -> None:
    plain = train_plain(config(tiny_dataset, "cdp_timestep", optimizer, "table_wise"), FEW_STEPS)
    assert min(plain.moved.values()) > 100 * TOLERANCE  # else equality would say little
    for case in FEW[optimizer]:
        assert max(differences(few[optimizer, case], plain)) < TOLERANCE, case


@only_whole
@pytest.mark.slow
def test_a_table_with_fewer_rows_than_its_ranks_need_trains(tiny_dataset: Path) -> None:
    four = Case("row_wise", Layout(4))
    chosen = {"adam": [four], "rowwise_adagrad": [four]}
    (results,) = run_phases([(four.layout, train_under)], tiny_dataset, "cdp_timestep", chosen, 2)
    for optimizer in chosen:
        plain = train_plain(config(tiny_dataset, "cdp_timestep", optimizer, "table_wise"), 2)
        assert max(differences(results[optimizer, four], plain)) < TOLERANCE


def test_mixed_plans_mix_all_types(few: Results) -> None:
    types = few["adam", Case("mixed", TWO)].types
    assert set(types.values()) == {
        "table_wise",
        "row_wise",
        "column_wise",
        "table_row_wise",
        "grid_shard",
        "data_parallel",
    }


MODELS = [*product(["cdp_timestep", "din"], ["adam", "rowwise_adagrad"])]
if not WHOLE_MATRIX:
    MODELS = [("cdp_timestep", "adam"), ("din", "rowwise_adagrad")]


@pytest.mark.slow
@pytest.mark.parametrize(("interest", "optimizer"), MODELS)
def test_every_plan_on_every_layout_equals_plain_pytorch(
    tiny_dataset: Path, interest: str, optimizer: str
) -> None:
    plain = train_plain(config(tiny_dataset, interest, optimizer, "table_wise"), NUM_STEPS)
    assert min(plain.moved.values()) > 100 * TOLERANCE
    chosen = {optimizer: cases(optimizer)}
    phases = [(layout, train_under) for layout in LAYOUTS]
    by_layout = run_phases(phases, tiny_dataset, interest, chosen, NUM_STEPS)
    trained = {case: result for part in by_layout for (_, case), result in part.items()}
    assert list(trained) == chosen[optimizer]
    found = {case: differences(result, plain) for case, result in trained.items()}
    print(_table(f"{interest}, {optimizer}", found))
    assert {case: loss for case, (loss, _) in found.items() if loss > TOLERANCE} == {}
    assert {case: table for case, (_, table) in found.items() if table > TOLERANCE} == {}
    for case, result in trained.items():
        assert case.plan not in PURE or case.plan in result.types.values()


def _table(title: str, found: Mapping[Case, tuple[float, float]]) -> str:
    """Markdown: a row per plan, a column per layout; differences of losses / of tables."""
    lines = [
        f"\n{title}: largest difference from plain PyTorch over {NUM_STEPS} steps, "
        "of a loss / of an element of a table\n",
        "| plan | " + " | ".join(f"ranks {layout}" for layout in LAYOUTS) + " |",
        "|---" * (1 + len(LAYOUTS)) + "|",
    ]
    for plan in dict.fromkeys(case.plan for case in found):
        pairs = [found.get(Case(plan, layout)) for layout in LAYOUTS]
        missing = "as 4" if WHOLE_MATRIX else ""
        cells = [missing if pair is None else "{:.0e} / {:.0e}".format(*pair) for pair in pairs]
        lines.append(f"| {plan} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


REFUSED = {
    "sharding.strategy = 'column_wise'": ["column_wise"],
    "sharding.tables.item": ["table_wise", 'sharding.tables.item={types=["column_wise"]}'],
}
"""What the message names: plan and overrides."""


def messages_of_refused(dataset: Path) -> dict[str, str]:
    """What this rank says to column splits under row-wise Adagrad."""
    found = {}
    for name, plan in REFUSED.items():
        settings = config(dataset, "cdp_timestep", "rowwise_adagrad", *plan)
        with pytest.raises(ConfigError) as error:
            build_experiment(settings, CPU)
        found[name] = str(error.value)
    dist.barrier()
    return found


@pytest.mark.slow
def test_column_splits_under_rowwise_adagrad_are_refused_on_all_ranks(tiny_dataset: Path) -> None:
    first, second = run_ranks(2, messages_of_refused, tiny_dataset)
    assert first == second
    for name, message in first.items():
        (line,) = [line for line in message.splitlines() if "column_wise and" in line]
        assert f"{name}: column_wise and optimizer.sparse.kind = 'rowwise_adagrad'" in line


def test_what_stands_in_for_a_type_that_sequences_lack_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tables = Tables(sequence={"item": 100, "category": 100})
    _say_what_stands_in.cache_clear()
    constraints = table_constraints(problem(tables, strategy="grid_shard"))
    assert constraints["t_user"].sharding_types == ["grid_shard"]
    for name in ("t_item", "t_category"):
        assert constraints[name].sharding_types == ["column_wise"]
    (message,) = caplog.messages
    assert "column_wise instead of grid_shard" in message
