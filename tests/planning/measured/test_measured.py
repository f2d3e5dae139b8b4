"""The benchmark of sharding plans measures real steps, and its fit finds what is there to find."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from cdp_torchrec.commands import benchmark
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.data.loader import Share
from cdp_torchrec.distributed.parallelize import initialize_table
from cdp_torchrec.distributed.plans.file import write_plan
from cdp_torchrec.distributed.plans.hardware import load_hardware
from cdp_torchrec.distributed.plans.tables import shardings_of
from cdp_torchrec.experiment import build_experiment, open_data
from cdp_torchrec.planning.estimator import estimate_plan
from cdp_torchrec.planning.measured.comparison import compare
from cdp_torchrec.planning.measured.config import PlansConfig
from cdp_torchrec.planning.measured.fit import UNFITTED, Point, error, fit, fit_by_others
from cdp_torchrec.planning.measured.ids import draw_ids, resize_tables
from cdp_torchrec.planning.measured.job import make_plans, open_job
from cdp_torchrec.planning.measured.measurement import measure_plans
from cdp_torchrec.planning.measured.output import write_outputs
from cdp_torchrec.planning.measured.sharded_tables import PIECES, Piece, ShardedTables
from cdp_torchrec.planning.measured.text import as_markdown
from tests.distributed.spawn import run_ranks
from tests.paths import CONFIGS
from tests.squeeze import squeezed

POOLED = str(CONFIGS / "interest" / "pooled.toml")
CONSTANTS = ("memory", "network")
CPU = torch.device("cpu")

pytestmark = pytest.mark.timeout(300)


def settings(dataset: Path, *more: str) -> list[str]:
    return [
        POOLED,
        f"data.dir={dataset}",
        "model.embedding_dim=8",
        "trainer.global_batch_size=64",
        "benchmark.rounds=1",
        "benchmark.steps=2",
        *more,
    ]


# --- fit -----------------------------------------------------------------------------------------


def point(sharding_type: str, piece: Piece, parts: dict[str, float], measured_ms: float) -> Point:
    return Point("t_item", sharding_type, "fused", ("plan",), piece, measured_ms, parts)


def machine(
    slowdown: dict[str, float], fixed_ms: dict[Piece, float], *, noise: float = 0.0
) -> list[Point]:
    """What such a machine would show of tables of many sizes."""
    draw = random.Random(0)
    points = []
    for kind in ("table_wise", "row_wise", "data_parallel"):
        for size in (0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0):
            for piece in ("lookup", "output", "gradient"):
                parts = {
                    "lookup": {"memory": size, "network": 0.0},
                    "output": {"memory": 0.0, "network": size},
                    "gradient": {"memory": 0.3 * size, "network": size},
                }[piece]
                ms = fixed_ms[piece] + sum(slowdown[name] * part for name, part in parts.items())
                points.append(point(kind, piece, parts, ms * draw.uniform(1 - noise, 1 + noise)))
    return points


def test_known_bandwidths_and_fixed_costs_are_recovered() -> None:
    slowdown = {"memory": 4.0, "network": 0.25}
    fixed: dict[Piece, float] = {"lookup": 0.5, "output": 2.0, "gradient": 1.0}
    found = fit(machine(slowdown, fixed), CONSTANTS)
    assert found.slowdown == pytest.approx(slowdown, rel=0.01)
    assert found.fixed_ms == pytest.approx(fixed, rel=0.01)


def test_noise_and_one_wild_measurement_move_the_bandwidths_little() -> None:
    slowdown = {"memory": 4.0, "network": 0.25}
    points = machine(slowdown, {"lookup": 0.5, "output": 2.0, "gradient": 1.0}, noise=0.2)
    wild = point("table_wise", "output", {"memory": 0.0, "network": 100.0}, 10_000.0)
    assert fit([*points, wild], CONSTANTS).slowdown == pytest.approx(slowdown, rel=0.15)


def test_a_network_that_only_shows_its_latency_keeps_its_bandwidth() -> None:
    points = [
        point(kind, "output", {"network": size}, 5.0)
        for kind in ("table_wise", "row_wise")
        for size in (0.001, 0.01, 0.1)
    ]
    found = fit(points, ("network",))
    assert found.slowdown == {}
    assert found.fixed_ms["output"] == pytest.approx(5, rel=0.01)


def test_a_part_that_no_constant_divides_is_left_as_it_is() -> None:
    points = [
        point("table_wise", "lookup", {"memory": size, "other": 2.0}, 2.0 + 3.0 * size + 0.01)
        for size in (1.0, 5.0, 10.0, 50.0)
    ]
    assert fit(points, ("memory",)).slowdown["memory"] == pytest.approx(3, rel=0.05)


def test_a_sharding_type_is_judged_by_a_fit_that_has_not_seen_it() -> None:
    points = machine(
        {"memory": 2.0, "network": 2.0}, {"lookup": 0.1, "output": 0.1, "gradient": 0.1}
    )
    odd = [
        point(p.sharding_type, p.piece, dict(p.parts_ms), 10 * p.measured_ms)
        if p.sharding_type == "row_wise"
        else p
        for p in points
    ]
    others = fit_by_others(odd, CONSTANTS)
    assert others["row_wise"].slowdown["network"] == pytest.approx(2, rel=0.05)
    assert others["table_wise"].slowdown["network"] > 3
    only = [p for p in points if p.sharding_type == "row_wise"]
    assert fit_by_others(only, CONSTANTS) == {}


def test_the_error_is_a_median_factor_and_a_share_of_the_time() -> None:
    points = [point("row_wise", "lookup", {"memory": 1.0}, ms) for ms in (1.0, 2.0, 0.25)]
    found = error([UNFITTED.estimate(p, fixed=False) for p in points], points)
    assert found.factor == 2
    assert found.missed == pytest.approx((0 + 1 + 0.75) / 3.25)


# --- ids -----------------------------------------------------------------------------------------


def test_resized_tables_get_ids_all_over_and_bags_as_long_as_before(tiny_dataset: Path) -> None:
    config = load_config(PlansConfig, settings(tiny_dataset))
    data = open_data(config, share=Share(0, 1), global_batch_size=64)
    rows = {"item": 5000}
    layout = resize_tables(data.layout, rows)
    batch = data.train[0]
    (ids,) = draw_ids([batch], layout, rows, seed=0)
    assert layout.tables["item"].num_embeddings == 5000
    assert ids.lengths().equal(batch.sparse.lengths())
    assert ids["item_id"].values().max() > data.layout.tables["item"].num_embeddings
    assert ids["item_id"].values().max() < 5000
    assert ids["user_id"].values().equal(batch.sparse["user_id"].values())


@pytest.mark.parametrize(
    ("rows", "message"),
    [({"items": 10}, "rows.items: the model has no such table; it has"), ({"item": 2}, "least 3")],
)
def test_rows_that_no_table_can_have_are_refused(
    tiny_dataset: Path, rows: dict[str, int], message: str
) -> None:
    config = load_config(PlansConfig, settings(tiny_dataset))
    data = open_data(config, share=Share(0, 1), global_batch_size=64)
    with pytest.raises(ConfigError, match=message):
        resize_tables(data.layout, rows)


# --- on two ranks --------------------------------------------------------------------------------


@pytest.mark.distributed
def test_plans_are_measured_estimated_and_fitted_on_two_ranks(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    more = ["benchmark.rows.item=3000", "sharding.small_table_rows=100"]
    more += [f"benchmark.output={tmp_path / 'out'}", "optimizer.sparse.kind=rowwise_adagrad"]
    more += [f"benchmark.output_hardware={tmp_path / 'here.toml'}"]
    outcomes = run_ranks(2, benchmark_plans, settings(tiny_dataset, *more))
    assert outcomes[0] == outcomes[1], "ranks agree on what was measured"

    content = json.loads((tmp_path / "out" / "plans.json").read_text())
    plans = {plan["name"]: plan for plan in content["plans"]}
    assert list(plans) == ["table_wise", "row_wise", "data_parallel", "auto"]
    for plan in plans.values():
        assert set(plan["tables"]) >= {"t_item", "t_user", "t_category"}
        for table in plan["tables"].values():
            for kind in ("weight", "optimizer"):
                held = [cost["bytes"][_HELD[kind]] for cost in table["measured"]]
                planned = [0, 0]
                for shard in table["estimated"]:
                    planned[shard["rank"]] += shard[f"{kind}_bytes"]
                assert held == planned
    item = plans["row_wise"]["tables"]["t_item"]
    assert item["sharding_type"] == "row_wise"
    assert all(cost["ms"][piece] > 0 for cost in item["measured"] for piece in PIECES)

    table = squeezed((tmp_path / "out" / "plans.md").read_text())
    assert "| item | 3,000 x 8 | row_wise (fused) |" in table
    assert "| all | " in table and "host_bandwidth_gb_s: 10" in table
    assert (tmp_path / "out" / "plans.png").stat().st_size > 10_000
    hardware = load_hardware(str(tmp_path / "here.toml"))
    assert hardware.model_dump(mode="json") == content["fitted_hardware"]


_HELD = {"weight": "weights", "optimizer": "optimizer"}


def benchmark_plans(arguments: list[str]) -> dict[str, Any]:
    config = load_config(PlansConfig, arguments)
    job = open_job(config, CPU)
    measured = measure_plans(job, make_plans(job))
    if torch.distributed.get_rank() == 0:
        comparison = compare(job, measured)
        write_outputs(comparison)
        assert as_markdown(comparison)
        for plan in comparison.plans:
            problem = replace(job.problem, hardware=comparison.hardware)
            again = estimate_plan(problem, plan.measured.plan)
            assert plan.after.embedding_ms == again.embedding_ms
    return {name: plan.tables for name, plan in measured.items()}


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["adam", "rowwise_adagrad"])
def test_a_measured_step_trains_the_table_alike_under_all_plans(
    tiny_dataset: Path, kind: str
) -> None:
    more = [f"optimizer.sparse.kind={kind}", "sharding.small_table_rows=0"]
    (after, _) = run_ranks(2, train_item_table, settings(tiny_dataset, *more))
    before, *trained = after
    for table in trained:
        assert table.sub(before).abs().max() > 1e-4
        torch.testing.assert_close(table, trained[0], rtol=0, atol=1e-6)


def train_item_table(arguments: list[str]) -> list[torch.Tensor]:
    """The table of items: at first, and after two steps under each plan."""
    names = ["table_wise", "row_wise", "data_parallel"]
    config = load_config(PlansConfig, [*arguments, f"benchmark.plans={json.dumps(names)}"])
    job = open_job(config, CPU)
    tables = []
    for plan in make_plans(job).values():
        shardings = shardings_of(plan)
        sharded = ShardedTables(
            [table for table in job.problem.tables if table.name == "t_item"],
            shardings,
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


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        ("h100", "sharding.hardware = 'h100': has device 'cuda', but the ranks compute on 'cpu'"),
        ("h900", "hardware 'h900': unknown; expected one of a10"),
    ],
)
def test_hardware_that_the_ranks_do_not_have_is_refused_as_a_training_refuses_it(
    tiny_dataset: Path, hardware: str, message: str
) -> None:
    arguments = settings(tiny_dataset, f"sharding.hardware={hardware}")
    (said, by_other_rank) = run_ranks(2, refusals_of_hardware, arguments)
    assert said == by_other_rank
    measuring, training = said
    assert measuring == training
    assert message in measuring


def refusals_of_hardware(arguments: list[str]) -> list[str]:
    config = load_config(PlansConfig, arguments)
    said = []
    for start in (open_job, build_experiment):
        with pytest.raises(ConfigError) as raised:
            start(config, CPU)
        said.append(str(raised.value))
    return said


@pytest.mark.distributed
def test_plans_that_cannot_run_are_refused_on_all_ranks(tiny_dataset: Path, tmp_path: Path) -> None:
    for_one = tmp_path / "one.json"
    run_ranks(
        1, write_plan_of_one_rank, settings(tiny_dataset, 'benchmark.plans=["row_wise"]'), for_one
    )
    cases = {
        "table_wide": "benchmark.plans: found 'table_wide'; expected some of auto, table_wise",
        str(for_one): "world_size: 1 in the plan, 2 in this job",
        str(tmp_path / "none.json"): "none.json",
        "column_wise": "rowwise_adagrad",
    }
    more = ["optimizer.sparse.kind=rowwise_adagrad", "sharding.small_table_rows=0"]
    said = run_ranks(2, refusals, settings(tiny_dataset, *more), list(cases))
    assert said[0] == said[1]
    for found, message in zip(said[0], cases.values(), strict=True):
        assert message in found


def write_plan_of_one_rank(arguments: list[str], path: Path) -> None:
    job = open_job(load_config(PlansConfig, arguments), CPU)
    (plan,) = make_plans(job).values()
    write_plan(path, plan, job.problem)


def refusals(arguments: list[str], names: list[str]) -> list[str]:
    said = []
    for name in names:
        config = load_config(PlansConfig, [*arguments, f"benchmark.plans={json.dumps([name])}"])
        with pytest.raises(ConfigError) as raised:
            make_plans(open_job(config, CPU))
        said.append(str(raised.value))
    return said


# --- command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("benchmark.output_hardware={}/here.json", "expected a file ending in .toml"),
        ("benchmark.output={}/file/plans", "/file is not a writable directory"),
        ("benchmark.output_hardware={}/file/here.toml", "/file is not a writable directory"),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_anything_runs(
    tiny_dataset: Path, tmp_path: Path, setting: str, message: str
) -> None:
    (tmp_path / "file").touch()
    config = load_config(PlansConfig, settings(tiny_dataset, setting.format(tmp_path)))
    with pytest.raises(ConfigError, match=message):
        open_job(config, CPU)


def test_help_of_plans_lists_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["plans", "--help"])
    shown = capsys.readouterr().out
    assert "output_hardware" in shown and "benchmark.py plans" in shown
