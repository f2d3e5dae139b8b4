"""Several copies of the tables, each on a group of ranks of its own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.plans.constraints import table_constraints
from cdp_torchrec.distributed.plans.file import read_plan, write_plan
from cdp_torchrec.distributed.plans.job import count_replicas
from cdp_torchrec.distributed.plans.managed_collision import managed_collision_conflicts
from cdp_torchrec.distributed.plans.search import choose_plan
from cdp_torchrec.distributed.row_optimizers import LazyAdam
from tests.distributed.plans.cases import Case, Layout, tables_of
from tests.distributed.plans.problems import ADAGRAD, ADAM, problem, with_replicas
from tests.distributed.plans.test_plans import TOLERANCE
from tests.distributed.plans.test_resharding import Saved, check, reshard

CPU = torch.device("cpu")
TWICE_TWO = Case("groups_of_two", Layout(4))
OTHERS = [
    Case("column_wise", Layout(1)),
    Case("mixed", Layout(2)),
    Case("row_wise", Layout(4)),
]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(1800)
def test_two_copies_train_as_one_does_and_their_checkpoints_continue_as_one_and_back(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    chosen = {"adam": [*OTHERS, TWICE_TWO]}
    check(found := reshard(tiny_dataset, chosen, tmp_path), chosen)
    pairs = {(source, target) for _, source, target in found}
    assert pairs >= {pair for o in OTHERS for pair in ((TWICE_TWO, o), (o, TWICE_TWO))}
    saved: dict[Case, Saved] = {
        case: torch.load(tmp_path / "adam" / str(case) / "saved.pt", weights_only=False)
        for case in chosen["adam"]
    }
    copies = saved.pop(TWICE_TWO)
    for case, one in saved.items():
        assert abs(copies.next_loss - one.next_loss) < TOLERANCE, case
        for name, table in tables_of(one.state).items():
            assert (tables_of(copies.state)[name] - table).abs().max() < TOLERANCE, (case, name)


def test_the_mean_of_two_steps_of_adam_is_no_step_of_the_mean_gradient() -> None:
    def moved(gradient: float) -> float:
        table = nn.Parameter(torch.zeros(1, 4, dtype=torch.float64))
        table.grad = torch.full_like(table, gradient)
        tables = {"bags.t_item.weight": (table, table.data)}
        LazyAdam(tables, lr=0.01, betas=(0.9, 0.999), eps=1e-12).step()
        return table[0, 0].item()

    assert (moved(1.0) + moved(-3.0)) / 2 == pytest.approx(0.0, abs=1e-9)
    assert moved((1.0 - 3.0) / 2) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("size", "optimizer", "device", "message"),
    [
        (3, ADAM, "cpu", r"sharding_group_size = 3: expected a divisor of .* ranks 4: 1, 2, 4"),
        (8, ADAM, "cpu", r"expected a divisor of the number of ranks 4"),
        (2, ADAGRAD, "cpu", r"= 2 and optimizer\.sparse\.kind = 'rowwise_adagrad' on cpu"),
        (2, ADAM, "cuda", r"'adam' on cuda do not go together: the update is fused"),
    ],
)
def test_replicas_that_could_not_stay_alike_are_refused(
    size: int, optimizer, device: str, message: str
) -> None:
    sharding = ShardingConfig(sharding_group_size=size)
    with pytest.raises(ConfigError, match=message):
        count_replicas(sharding, optimizer, torch.device(device), world_size=4)


def test_all_ranks_are_one_group_and_need_no_replicas() -> None:
    for size in (None, 4):
        sharding = ShardingConfig(sharding_group_size=size)
        assert count_replicas(sharding, ADAGRAD, CPU, world_size=4) == 1
    assert count_replicas(ShardingConfig(sharding_group_size=1), ADAM, CPU, world_size=4) == 4


@pytest.mark.parametrize("kind", ["table_row_wise", "grid_shard"])
def test_types_that_tell_nodes_apart_are_refused_with_replicas(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"sharding.tables.user: {kind} and .*group_size = 2"):
        table_constraints(with_replicas(problem(tables={"user": {"types": (kind,)}})))
    with pytest.raises(ConfigError, match=f"sharding.strategy = '{kind}': {kind} and .*"):
        table_constraints(with_replicas(problem(strategy=kind)))
    types = table_constraints(with_replicas(problem()))["t_user"].sharding_types
    assert types is not None
    assert kind not in types


@pytest.mark.parametrize("kind", ["table_row_wise", "grid_shard"])
def test_such_types_are_refused_in_a_plan_file_too(kind: str, tmp_path: Path) -> None:
    """Fails where a file is only compared with the ranks of one copy, which it fits."""
    write_plan(tmp_path / "plan.json", choose_plan(problem(strategy=kind)), problem())
    assert read_plan(tmp_path / "plan.json", problem())
    with pytest.raises(ConfigError, match=f"t_user: {kind} and sharding.sharding_group_size = 2"):
        read_plan(tmp_path / "plan.json", with_replicas(problem()))


def test_rows_that_ids_win_are_refused_with_replicas() -> None:
    """In a search and in a plan file: each replica would count its own ids, in silence."""
    [table] = (table for table in problem().tables if table.entity == "user")
    managed = replace(table, buckets=16)

    def conflicts(num_replicas: int) -> list[str]:
        return managed_collision_conflicts(
            managed, types=["row_wise"], kernels=[], world_size=2, num_replicas=num_replicas
        )

    assert conflicts(1) == []
    (conflict,) = conflicts(2)
    assert conflict.startswith("sharding.sharding_group_size = 2 and data.vocabulary.user.managed")
