"""Plans are measured on ranks, beside their estimates, and refused where they cannot run."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from cdp_torchrec.commands import benchmark
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.distributed.parallelize import initialize_table
from cdp_torchrec.distributed.plans.file import write_plan
from cdp_torchrec.distributed.plans.search import choose_plan
from cdp_torchrec.distributed.plans.tables import shardings_of
from cdp_torchrec.experiment import build_experiment
from cdp_torchrec.planning.estimator import estimate_plan
from cdp_torchrec.planning.measured.comparison import compare
from cdp_torchrec.planning.measured.config import PlansConfig
from cdp_torchrec.planning.measured.job import check_settings, make_plans, open_job
from cdp_torchrec.planning.measured.measurement import MeasuredStep, measure_plans
from cdp_torchrec.planning.measured.output import as_json
from cdp_torchrec.planning.measured.sharded_tables import PIECES, ShardedTables
from cdp_torchrec.planning.measured.text import as_markdown
from tests.distributed.spawn import run_ranks
from tests.planning.measured.settings import settings
from tests.squeeze import squeezed

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Outcome:
    """What a rank has measured."""

    steps: dict[str, Mapping[str, Sequence[MeasuredStep]]]
    """By plan and table, of each rank."""
    told: str | None
    """The text, on rank 0."""
    content: dict[str, Any] | None
    """All numbers, on rank 0."""


@pytest.mark.slow
@pytest.mark.distributed
def test_plans_are_measured_estimated_and_fitted_on_two_ranks(tiny_dataset: Path) -> None:
    more = ["benchmark.rows.item=3000", "sharding.small_table_rows=100"]
    more += ["optimizer.sparse.kind=rowwise_adagrad"]
    first, second = run_ranks(2, benchmark_plans, settings(tiny_dataset, *more))
    assert first.steps == second.steps, "ranks agree on what was measured"
    assert list(first.steps) == ["table_wise", "row_wise", "data_parallel", "auto"]

    plans = {plan["name"]: plan for plan in first.content["plans"]}
    for name, plan in plans.items():
        assert set(plan["tables"]) >= {"t_item", "t_user", "t_category"}
        for table, described in plan["tables"].items():
            weights, optimizer = [0, 0], [0, 0]
            for shard in described["estimated"]:
                weights[shard["rank"]] += shard["weight_bytes"]
                optimizer[shard["rank"]] += shard["optimizer_bytes"]
            held = [step.memory for step in first.steps[name][table]]
            assert [memory.weights for memory in held] == weights
            assert [memory.optimizer for memory in held] == optimizer
    assert plans["row_wise"]["tables"]["t_item"]["sharding_type"] == "row_wise"
    for step in first.steps["row_wise"]["t_item"]:
        assert all(step.ms[piece] > 0 for piece in PIECES)

    table = squeezed(first.told)
    assert "| item | 3,000 x 8 | row_wise (fused) |" in table
    assert "| all | " in table and "host_bandwidth_gb_s: 10" in table


def benchmark_plans(arguments: list[str]) -> Outcome:
    job = open_job(load_config(PlansConfig, arguments), CPU)
    measured = measure_plans(job, make_plans(job))
    steps = {name: plan.tables for name, plan in measured.items()}
    if torch.distributed.get_rank() != 0:
        return Outcome(steps, None, None)
    comparison = compare(job, measured)
    for plan in comparison.plans:
        fitted = replace(job.problem, hardware=comparison.hardware)
        again = estimate_plan(fitted, plan.measured.plan)
        assert plan.after.embedding_ms == again.embedding_ms
    return Outcome(steps, as_markdown(comparison), as_json(comparison))


@pytest.mark.distributed
@pytest.mark.slow
def test_a_measured_step_trains_the_table_alike_under_all_plans(tiny_dataset: Path) -> None:
    arguments = settings(tiny_dataset, "sharding.small_table_rows=0")
    (by_optimizer, _) = run_ranks(2, train_item_tables, arguments)
    assert list(by_optimizer) == ["adam", "rowwise_adagrad"]
    for before, *trained in by_optimizer.values():
        assert len(trained) == 3
        for table in trained:
            assert table.sub(before).abs().max() > 1e-4
            torch.testing.assert_close(table, trained[0], rtol=0, atol=1e-6)


def train_item_tables(arguments: list[str]) -> dict[str, list[torch.Tensor]]:
    """By optimizer the table of items: at first, and after two steps under each plan."""
    plans = 'benchmark.plans=["table_wise", "row_wise", "data_parallel"]'
    return {
        kind: train_item_table([*arguments, plans, f"optimizer.sparse.kind={kind}"])
        for kind in ("adam", "rowwise_adagrad")
    }


def train_item_table(arguments: list[str]) -> list[torch.Tensor]:
    job = open_job(load_config(PlansConfig, arguments), CPU)
    tables = []
    for plan in make_plans(job).values():
        sharded = ShardedTables(
            [table for table in job.problem.tables if table.name == "t_item"],
            shardings_of(plan),
            problem=job.problem,
            device=CPU,
        )
        ((name, table),) = sharded._model.state_dict().items()
        initialize_table(name, table, std=0.1, seed=0)
        if not tables:
            tables.append(whole(table))
        for ids in job.ids:
            sharded.step(ids)
        tables.append(whole(sharded._model.state_dict()[name]))
    return tables


def whole(table: torch.Tensor | ShardedTensor) -> torch.Tensor:
    if not isinstance(table, ShardedTensor):
        return table.detach().clone()
    parts = [torch.zeros(0)] * 2
    mine = [(s.metadata.shard_offsets, s.tensor.detach().clone()) for s in table.local_shards()]
    torch.distributed.all_gather_object(parts, mine)
    gathered = torch.zeros(table.size())
    for shards in parts:
        for (row, column), part in shards:
            gathered[row : row + part.shape[0], column : column + part.shape[1]] = part
    return gathered


@dataclass(frozen=True)
class Refused:
    """What a rank says to what it cannot do."""

    plans: dict[str, str]
    """By name of the plan."""
    hardware: dict[str, tuple[str, str]]
    """By name of the hardware: to measuring, and to training."""


@pytest.fixture(scope="module")
def refused(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Refused]:
    """By rank."""
    more = ["optimizer.sparse.kind=rowwise_adagrad", "sharding.small_table_rows=0"]
    folder = tmp_path_factory.mktemp("plans")
    return run_ranks(2, refusals, settings(tiny_dataset, *more), folder)


def refusals(arguments: list[str], folder: Path) -> Refused:
    one = replace(open_job(load_config(PlansConfig, arguments), CPU).problem, world_size=1)
    if torch.distributed.get_rank() == 0:
        write_plan(folder / "one.json", choose_plan(one), one)
    torch.distributed.barrier()
    plans = {}
    for name in (f"{folder}/one.json", f"{folder}/none.json", "column_wise"):
        config = load_config(PlansConfig, [*arguments, f"benchmark.plans={json.dumps([name])}"])
        plans[Path(name).name] = refusal(lambda config=config: make_plans(open_job(config, CPU)))
    hardware = {}
    for name in ("h100", "h900"):
        config = load_config(PlansConfig, [*arguments, f"sharding.hardware={name}"])
        hardware[name] = (
            refusal(lambda config=config: open_job(config, CPU)),
            refusal(lambda config=config: build_experiment(config, CPU)),
        )
    return Refused(plans, hardware)


def refusal(start: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as raised:
        start()
    return str(raised.value)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one.json", "world_size: 1 in the plan, 2 in this job"),
        ("none.json", "none.json' cannot be read"),
        ("column_wise", "optimizer.sparse.kind = 'rowwise_adagrad' do not go together"),
    ],
)
def test_plans_that_cannot_run_are_refused_on_all_ranks(
    refused: list[Refused], name: str, message: str
) -> None:
    first, second = (rank.plans[name] for rank in refused)
    assert message in first
    assert first == second


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100", "sharding.hardware = 'h100': has device 'cuda', but the ranks compute on 'cpu'"),
        ("h900", "hardware 'h900': unknown; expected one of a10"),
    ],
)
def test_hardware_that_the_ranks_do_not_have_is_refused_as_a_training_refuses_it(
    refused: list[Refused], name: str, message: str
) -> None:
    first, second = (rank.hardware[name] for rank in refused)
    measuring, training = first
    assert message in measuring
    assert measuring == training
    assert first == second


@pytest.mark.parametrize("setting", ["strategy=row_wise", "plan=one.json"])
def test_plans_are_named_in_one_place(tiny_dataset: Path, setting: str) -> None:
    config = load_config(PlansConfig, settings(tiny_dataset, f"sharding.{setting}"))
    assert "benchmark.plans says which plans" in refusal(lambda: check_settings(config))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("benchmark.output_hardware={}/here.json", "expected a file ending in .toml"),
        ("benchmark.output={}/file/plans", "/file is not a writable directory"),
        ("benchmark.output_hardware={}/file/here.toml", "/file is not a writable directory"),
        ("benchmark.output_hardware={}/run.toml", "is there and was not written by this benchm"),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_anything_runs(
    tiny_dataset: Path, tmp_path: Path, setting: str, message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "run.toml").write_text("seed = 1\n")
    config = load_config(PlansConfig, settings(tiny_dataset, setting.format(tmp_path)))
    with pytest.raises(ConfigError, match=message):
        check_settings(config)


def test_a_plan_that_there_is_not_is_found_before_a_log_is_made(tmp_path: Path) -> None:
    arguments = [f"data.dir={tmp_path}/log", 'benchmark.plans=["auto", "table_wide"]']
    with pytest.raises(ConfigError, match="found 'table_wide'; expected some of auto, table_wise"):
        benchmark.main(["plans", *arguments])
    assert list(tmp_path.iterdir()) == []


def test_help_of_plans_lists_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["plans", "--help"])
    shown = capsys.readouterr().out
    assert "output_hardware" in shown and "benchmark.py plans" in shown
