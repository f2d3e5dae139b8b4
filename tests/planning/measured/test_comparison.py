"""Measurements of a known machine: its bandwidths come back, and are told."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.distributed.plans.hardware import HardwareConfig, load_hardware
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.search import choose_plan
from cdp_torchrec.planning.estimate import TableEstimate
from cdp_torchrec.planning.estimator import estimate_plan
from cdp_torchrec.planning.measured.comparison import (
    COMMUNICATION,
    ESTIMATES,
    Comparison,
    _fitted,
    compare,
    estimated_ms,
)
from cdp_torchrec.planning.measured.config import PlansConfig
from cdp_torchrec.planning.measured.fit import Fit
from cdp_torchrec.planning.measured.job import MeasuredJob
from cdp_torchrec.planning.measured.measurement import MeasuredPlan, MeasuredStep
from cdp_torchrec.planning.measured.output import write_hardware, write_outputs
from cdp_torchrec.planning.measured.sharded_tables import Piece, TableBytes
from cdp_torchrec.planning.measured.text import as_markdown
from tests.distributed.plans.problems import ADAGRAD, Tables, problem
from tests.planning.measured.settings import settings
from tests.squeeze import squeezed

ROWS = {f"table_{place}": 1000 * 3**place for place in range(8)}
FACTORS = {name: 2.0**place for place, name in enumerate(ROWS)}
"""Ids per impression."""
BATCH_SIZE = 4096


def posed(*, ranks_per_node: int = 2) -> PlanProblem:
    """Tables from small to large on two ranks."""
    hardware = load_hardware("cpu").model_copy(update={"ranks_per_node": ranks_per_node})
    return replace(
        problem(Tables(ROWS), optimizer=ADAGRAD),
        hardware=hardware,
        batch_size=BATCH_SIZE,
        pooling_factors=FACTORS,
    )


def measured_as(hardware: HardwareConfig, given: PlanProblem, strategy: str) -> MeasuredPlan:
    """What a machine with such bandwidths would show of a plan."""
    sharding = given.sharding.model_copy(update={"strategy": strategy})
    plan = choose_plan(replace(given, sharding=sharding))
    truth = estimate_plan(replace(given, hardware=hardware), plan)
    tables = {table.table.name: steps_of([table]) for table in truth.tables}
    return MeasuredPlan(plan, tables, steps_of(truth.tables))


def steps_of(tables: Sequence[TableEstimate]) -> list[MeasuredStep]:
    """By rank; ids take 0.25 ms, whatever they are."""
    steps = []
    for rank in range(2):
        ms: dict[Piece, float] = {"input": 0.25}
        for piece in ESTIMATES:
            ms[piece] = sum(float(estimated_ms(table, piece, 2)[rank]) for table in tables)
        steps.append(MeasuredStep(ms, TableBytes(weights=2**20, optimizer=2**19, gradients=0)))
    return steps


def compared(folder: Path, *, ranks_per_node: int = 2, **slower: float) -> Comparison:
    """A machine whose bandwidths are lower than thought."""
    given = posed(ranks_per_node=ranks_per_node)
    real = {name: getattr(given.hardware, name) / factor for name, factor in slower.items()}
    hardware = given.hardware.model_copy(update=real)
    places = [f"benchmark.output={folder}/out", f"benchmark.output_hardware={folder}/here.toml"]
    config = load_config(PlansConfig, settings(Path("nowhere"), *places))
    job = MeasuredJob(config, torch.device("cpu"), given, ids=())
    return compare(
        job, {name: measured_as(hardware, given, name) for name in ("table_wise", "row_wise")}
    )


def test_a_machine_with_other_bandwidths_is_found_and_explains_its_plans(tmp_path: Path) -> None:
    found = compared(tmp_path, host_bandwidth_gb_s=3, intra_node_gb_s=2)
    assert found.hardware.host_bandwidth_gb_s == pytest.approx(10 / 3, rel=0.05)
    assert found.hardware.intra_node_gb_s == pytest.approx(1 / 2, rel=0.05)
    assert found.hardware.inter_node_gb_s == 0.4, "one node shows nothing of it"
    for plan in found.plans:
        assert plan.after.embedding_ms == pytest.approx(plan.measured_ms, rel=0.05)
        assert plan.before.embedding_ms < plan.measured_ms / 1.5


def test_links_between_nodes_are_fitted_where_there_are_nodes(tmp_path: Path) -> None:
    found = compared(tmp_path, ranks_per_node=1, inter_node_gb_s=4)
    assert found.job.num_nodes == 2
    assert found.hardware.inter_node_gb_s == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("collective_ms", [0.8, 0.51, 0.49, 0.2, 0.02])
@pytest.mark.parametrize(("hardware", "ranks"), [("cpu", 2), ("h100", 8)])
def test_collectives_cost_what_was_measured_however_fast_they_are(
    hardware: str, ranks: int, collective_ms: float
) -> None:
    fixed: dict[Piece, float] = dict.fromkeys(("lookup", "update"), 0.1)
    fixed |= dict.fromkeys(COMMUNICATION, collective_ms)
    found = _fitted(load_hardware(hardware), Fit(slowdown={}, fixed_ms=fixed), ranks)
    assert found.collective_ms(ranks - 1) == pytest.approx(collective_ms, rel=0.02)


def test_an_absurd_bandwidth_is_refused_with_what_would_help(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absurd: .*host_bandwidth_gb_s(.|\n)*benchmark\.rows"):
        compared(tmp_path, host_bandwidth_gb_s=10_000)


def test_every_plan_table_and_bandwidth_is_told(tmp_path: Path) -> None:
    found = compared(tmp_path, host_bandwidth_gb_s=3, intra_node_gb_s=2)
    text = squeezed(as_markdown(found))
    assert text.startswith("2 ranks (cpu) on 1 node(s), 4096 impressions per rank, sparse")
    for plan in found.plans:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {plan.name} |")]
        whole, alone, ids, memory = line.strip("| ").split(" | ")[1:]
        measured, before, after = (float(ms) for ms in whole.split(" / "))
        assert measured == pytest.approx(plan.measured_ms, rel=0.01)
        assert before == pytest.approx(plan.before.embedding_ms, rel=0.01)
        assert after == pytest.approx(plan.after.embedding_ms, rel=0.01)
        assert float(alone) == pytest.approx(plan.measured_ms, rel=0.01), "nothing is shared here"
        assert (ids, memory.split(" / ")[0]) == ("0.25", "1.5")
    for name, rows in ROWS.items():
        assert f"| {name} | {rows:,} x 16 | row_wise (fused) |" in text
        assert re.search(
            rf"\| {name} \| {rows:,} x 16 \| table_wise \(fused\) on rank [01] \|", text
        )
    assert re.search(r"\| all \| \d+ \| x[23]\.\d\d, \d+% \| x1\.0\d, [0-5]% \|", text)
    fitted = found.hardware.host_bandwidth_gb_s
    assert f"* host_bandwidth_gb_s: 10 -> {fitted:g}" in text
    assert "* inter_node_gb_s: 0.4, kept: one node" in text


def test_the_files_hold_the_numbers_and_the_fitted_hardware(tmp_path: Path) -> None:
    found = compared(tmp_path, host_bandwidth_gb_s=3)
    write_outputs(found)
    content = json.loads((tmp_path / "out" / "plans.json").read_text())
    assert [plan["name"] for plan in content["plans"]] == ["table_wise", "row_wise"]
    assert len(content["points"]) == len(found.points)
    for plan in content["plans"]:
        step = plan["tables"]["t_item"]["measured"][0]
        assert step["bytes"] == {"weights": 2**20, "optimizer": 2**19, "gradients": 0}
        assert list(step["ms"]) == ["input", *ESTIMATES]
    assert (tmp_path / "out" / "plans.md").read_text() == as_markdown(found) + "\n"
    assert (tmp_path / "out" / "plans.png").read_bytes().startswith(b"\x89PNG")
    assert load_hardware(str(tmp_path / "here.toml")) == found.hardware


def test_the_file_of_the_hardware_names_the_fixed_costs_that_were_fitted(tmp_path: Path) -> None:
    found = compared(tmp_path)
    costs = {"lookup_us": 250.0, "collective_us": 90.0}
    path = tmp_path / "here.toml"
    write_hardware(replace(found, hardware=found.hardware.model_copy(update=costs)), path)
    (told, *_) = path.read_text().splitlines()
    fitted = told.removeprefix("# Fitted by launch/benchmark.py plans: ").rstrip(".").split(", ")
    assert set(fitted) - {"intra_node_gb_s", "host_bandwidth_gb_s"} == set(costs)
