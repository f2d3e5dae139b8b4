"""From a configuration to tables, plan files, figures, and reasons."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.distributed.plans.hardware import load_hardware
from cdp_torchrec.planning import dense as dense_module
from cdp_torchrec.planning import explore as explore_module
from cdp_torchrec.planning.case import FeasiblePlan
from cdp_torchrec.planning.config import PlanningExperimentConfig
from cdp_torchrec.planning.dense import OperationCounter, count_dense
from cdp_torchrec.planning.difference import compare_plans, describe_ranks
from cdp_torchrec.planning.explore import explore
from cdp_torchrec.planning.output import write_exploration
from cdp_torchrec.planning.rank_text import render_rank_changes, render_ranks
from cdp_torchrec.planning.text import render
from cdp_torchrec.planning.workload import Workload, read_workload
from tests.paths import CONFIGS
from tests.whole_matrix import KINDS, WHOLE_MATRIX

CUT = ("din", "eta", "sim_hard", "sim_soft")
"""On a CPU they cut sequences by what they find, or go piece by piece."""
PRESETS = sorted(path.stem for path in (CONFIGS / "interest").glob("*.toml"))
COUNTED = [p for p in PRESETS if WHOLE_MATRIX or p in (*CUT, *KINDS)]
TWO = ('planning.strategies=["planner","row_wise"]', "planning.batch_size=256")


@pytest.mark.slow
def test_an_exploration_leaves_text_json_plans_and_figures(load, tmp_path: Path) -> None:
    text = write_exploration(explore(load(*TWO)))
    assert all(len(line) <= 120 for line in text.splitlines())
    found = json.loads((tmp_path / "plans" / "plans.json").read_text())
    assert list(found) == ["a10-4-planner", "a10-4-row_wise"]
    assert len(found["a10-4-planner"]["tables"]) == 15
    names = {path.name for path in (tmp_path / "plans").iterdir()}
    assert {"plans.txt", "a10-4-planner.json", "a10-4-planner.png", "scaling.png"} <= names


@pytest.mark.slow
def test_a_second_exploration_plans_nothing(load, monkeypatch: pytest.MonkeyPatch) -> None:
    first = explore(load(*TWO))
    monkeypatch.delattr(explore_module, "_plan")
    second = explore(load(*TWO))
    for planned, loaded in zip(first.feasible, second.feasible, strict=True):
        assert loaded.estimate.tables == planned.estimate.tables
        assert loaded.step_ms == planned.step_ms
    with pytest.raises(NameError):
        explore(load(*TWO, "planning.rows.user=1000"))


def test_many_ranks_are_told_before_they_are_planned(
    load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(explore_module, "_MANY_RANKS", 4)
    sizes = ("planning.world_sizes=[2, 4]", 'planning.strategies=["table_wise"]', TWO[1])
    explore(load(*sizes))
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 2)[2] for line in said if "minutes" in line] == [
        "plan a10-4-table_wise, which may take minutes"
    ]
    explore(load(*sizes))
    assert "minutes" not in capsys.readouterr().err


@pytest.mark.slow
def test_an_exported_plan_is_explored_as_it_is(load, tmp_path: Path) -> None:
    (first, _) = explored = explore(load(*TWO)).feasible
    write_exploration(explore(load(*TWO)))
    path = tmp_path / "plans" / "a10-4-planner.json"
    (again,) = explore(
        load(*TWO[1:], 'planning.strategies=["constraints"]', f"sharding.plan={path}")
    ).feasible
    assert again.estimate.tables == first.estimate.tables
    assert len(explored) == 2


@pytest.mark.slow
def test_a_given_plan_that_does_not_fit_says_why(load, tmp_path: Path) -> None:
    rows = "planning.rows.user=150000000"  # x 16 x 4 bytes x 3 (Adam) are 28.8 GB
    h100 = load(rows, 'planning.hardware=["h100"]', 'planning.strategies=["table_wise"]')
    write_exploration(explore(h100))
    given = (
        'planning.strategies=["constraints"]',
        f"sharding.plan={tmp_path / 'plans' / 'h100-4-table_wise.json'}",
    )
    (too_large,) = explore(load(rows, *given)).infeasible
    (reason,) = too_large.reason
    assert "GB of 24 GB under the plan that is given" in reason
    (other, _) = explore(load(rows, *given, "planning.world_sizes=[2,4]")).infeasible
    assert "world_size: 4 in the plan, 2 in this job" in other.reason[1]
    assert other.fixes == ()
    with pytest.raises(ConfigError, match="world_size: 4 in the plan, 2 in this job"):
        explore(load(rows, *given, "planning.world_sizes=[2]"))


@pytest.mark.slow
def test_a_given_plan_that_fills_the_memory_of_its_hosts_says_so(load, tmp_path: Path) -> None:
    rows = "planning.rows.user=300000000"  # x 16 x 4 bytes x 3 (Adam) are 57.6 GB on 4 ranks
    own = (rows, TWO[1], 'planning.strategies=["constraints"]')
    in_host = 'sharding.tables.user={types=["row_wise"],kernels=["fused_uvm"]}'
    write_exploration(explore(load(*own, in_host)))
    given = f"sharding.plan={tmp_path / 'plans' / 'a10-4-constraints.json'}"
    for name, host_gb in (("large", 14.5), ("small", 14)):
        fields = load_hardware("a10").model_dump(exclude_none=True) | {"host_memory_gb": host_gb}
        (tmp_path / f"{name}.toml").write_text(tomli_w.dumps(fields))
    hardware = f'planning.hardware=["{tmp_path}/large.toml","{tmp_path}/small.toml"]'
    found = explore(load(*own, given, hardware))
    assert [plan.case.hardware_name for plan in found.feasible] == ["large"]
    (too_small,) = found.infeasible
    (reason,) = too_small.reason
    assert reason == "rank 0 needs 14.4 GB of 14 GB host memory under the plan that is given"


def test_tables_in_host_memory_beyond_it_are_held_against_that_memory(load, tmp_path: Path) -> None:
    fields = load_hardware("a10").model_dump(exclude_none=True) | {"host_memory_gb": 14}
    (tmp_path / "small.toml").write_text(tomli_w.dumps(fields))
    (result,) = explore(
        load(
            f'planning.hardware=["{tmp_path}/small.toml"]',
            'planning.strategies=["constraints"]',
            "planning.rows.user=300000000",  # x 16 x 4 bytes x 3 (Adam) are 57.6 GB on 4 ranks
            'sharding.tables.user={types=["row_wise"],kernels=["fused_uvm"]}',
        )
    ).infeasible
    said = "\n".join(result.reason)
    assert "take 14.4 GB on each rank, which has 14.0 GB for them, of 14.0 GB host memory" in said
    assert "at least 5 ranks" in said and "large tables in GPU memory" in said


def test_a_table_beyond_all_memory_names_the_rank_the_table_and_what_helps(load) -> None:
    found = explore(
        load("planning.rows.user=600000000", 'planning.strategies=["table_wise"]')
    ).infeasible
    (result,) = found
    # 600 million rows x 16 x 4 bytes x 3 (Adam) on one rank of 24 GB.
    assert "lacks 9" in result.reason[0]
    assert "t_user (table_wise) 115.2 GB" in result.reason[1]
    assert any("fused_uvm_caching" in fix for fix in result.fixes)
    assert not any("ranks instead of" in fix and "by rows" not in fix for fix in result.fixes)


@pytest.mark.slow
def test_more_ranks_than_a_node_has_are_whole_nodes(load) -> None:
    settings = ('planning.hardware=["h100"]', 'planning.strategies=["planner"]')
    # 5 billion rows x 16 x 4 bytes x 3 (Adam) are 960 GB; doubled, 3 ranks would be 12 of 8 a node.
    ranks = ("planning.world_sizes=[3]", "planning.rows.user=5000000000")
    (result,) = explore(load(*settings, *ranks)).infeasible
    assert any(fix.startswith("16 ranks instead of 3") for fix in result.fixes)


def test_what_helps_fits_with_the_gradients_of_replicated_tables(load) -> None:
    rows = ("planning.rows.user=160000000", "planning.rows.item=60000000")
    replicated = ("sharding.small_table_rows=60000000", 'planning.strategies=["planner"]')
    (result,) = explore(load(*rows, *replicated)).infeasible
    # 8 ranks would halve what is split, but t_item and its gradient are 15.4 GB on each of them.
    full = [int(re.findall(r"fullest rank at (\d+)%", fix)[0]) for fix in result.fixes]
    assert full
    assert max(full) <= 100


LARGE_USERS = ('planning.strategies=["planner","table_wise"]', "planning.rows.user=300000000")


@pytest.mark.slow
def test_of_a_case_that_has_no_plan_any_more_none_stays(load, tmp_path: Path) -> None:
    write_exploration(explore(load(LARGE_USERS[0], TWO[1])))
    write_exploration(explore(load(*LARGE_USERS, TWO[1])))
    there = {path.name for path in (tmp_path / "plans").glob("a10-*")}
    assert there == {"a10-4-planner.json", "a10-4-planner.png"}


@pytest.mark.slow
def test_a_plan_to_compare_that_there_is_not_is_told(load) -> None:
    compare = 'planning.compare=["a10-4-planner","a10-4-table_wise"]'
    text = render(explore(load(*LARGE_USERS, TWO[1], compare)))
    assert "a10-4-planner -> a10-4-table_wise: not compared, no plan of a10-4-table_wise" in text


def test_replicating_a_large_table_counts_its_gradient(load) -> None:
    (result,) = explore(load('planning.strategies=["data_parallel"]')).infeasible
    assert "does not count the gradients" in result.reason[0]


def test_dense_gradients_beyond_the_memory_of_a_host_are_told(load, tmp_path: Path) -> None:
    # 5 million rows x 16 x 4 bytes x 3 (Adam) are 1 GB, with their gradient 1.3 GB.
    small = load_hardware("cpu").model_dump(exclude_none=True) | {"host_memory_gb": 1.2}
    (tmp_path / "small.toml").write_text(tomli_w.dumps(small))
    rows = [f"planning.rows.{entity}=1000" for entity in ("query", "item", "token", "shop")]
    settings = (f'planning.hardware=["{tmp_path}/small.toml"]', "planning.world_sizes=[1]")
    one = ("planning.rows.user=5000000", 'planning.strategies=["table_wise"]', TWO[1], *rows)
    (result,) = explore(load(*settings, *one)).infeasible
    assert result.reason[0].startswith("rank 0 needs 1.3 GB of 1 GB: TorchRec's planner accepts it")
    assert result.reason[1] == "largest there: t_user, 0.3 GB of weights"


def test_a_difference_lists_exactly_the_tables_that_moved(load) -> None:
    first, second = explore(load(*TWO)).feasible
    assert compare_plans(first, first) == []
    moved = {table.name for table in compare_plans(first, second)}
    assert moved == {
        a.table.name
        for a, b in zip(first.estimate.tables, second.estimate.tables, strict=True)
        if (a.sharding_type, a.ranks) != (b.sharding_type, b.ranks)
    }


@pytest.mark.slow
def test_the_largest_tables_come_first_with_what_is_looked_up_in_them(load) -> None:
    result = explore(load(TWO[1], 'planning.strategies=["row_wise"]'))
    text = render(result)
    (plan,) = result.feasible
    lines = text[text.index("table, largest first") :].splitlines()[1:]
    by_size = sorted(plan.estimate.tables, key=lambda t: -t.table.num_embeddings)
    for line, table in zip(lines, by_size[:5], strict=False):
        name, rows, width, ids, *_ = line.split()
        assert (name, rows, width) == (table.table.name, f"{table.table.num_embeddings:,}", "16")
        factors = plan.estimate.problem.pooling_factors
        assert float(ids) == pytest.approx(sum(factors[k] for k in table.table.features), rel=0.01)


@pytest.mark.slow
def test_every_rank_is_shown_and_ranks_of_two_plans_are_compared(load) -> None:
    first, second = explore(load(*TWO)).feasible
    for plan in (first, second):
        shown = render_ranks(plan).splitlines()[1:]
        assert sorted(re.split(r"\D", line)[0] for line in shown) == ["0", "1", "2", "3"]
        slowest = shown[0]
        assert slowest.startswith(f"{plan.estimate.critical_rank}, critical")
        assert float(slowest.split()[-1]) == pytest.approx(plan.estimate.embedding_ms, abs=1e-3)
    changes = render_rank_changes(first, second).splitlines()[1:]
    assert len(changes) == 4
    gaps = [
        abs(float(m[1]) - float(m[0])) for m in (re.findall(r"[\d.]+", c)[-2:] for c in changes)
    ]
    assert gaps == sorted(gaps, reverse=True)


def test_ranks_are_told_as_ranges() -> None:
    assert describe_ranks([3]) == "rank 3"
    assert describe_ranks([0, 1, 2, 3, 6]) == "ranks 0-3, 6"


def test_cost_is_ranks_times_time(load) -> None:
    (result,) = explore(load(TWO[1], 'planning.strategies=["row_wise"]')).feasible
    assert isinstance(result, FeasiblePlan)
    steps = 1_000_000 / (4 * 256)
    assert result.rank_hours_per_million == pytest.approx(4 * steps * result.step_ms / 3.6e6)
    assert result.hours_per_day(1_000_000) == pytest.approx(steps * result.step_ms / 3.6e6)


@pytest.mark.slow
def test_the_dense_part_grows_with_the_batch(workload: Workload) -> None:
    small, large = (count_dense(replace(workload, batch_size=size)) for size in (256, 512))
    assert large.flops == pytest.approx(2 * small.flops, rel=0.02)
    assert large.num_parameters == small.num_parameters
    assert len(large.operations) == len(small.operations)


def test_a_question_to_a_tensor_is_no_kernel() -> None:
    with FakeTensorMode(), OperationCounter() as counter:
        x = torch.empty(4, 8)
        assert x.device.type == "cpu"
        (x.view(8, 4) @ x.new_ones(4, 2)).relu()
    # The empty tensor, the ones, the product and its positive part.
    assert [operation.flops for operation in counter.operations] == [0, 0, 2 * 8 * 4 * 2, 0]


def test_fused_attention_is_counted() -> None:
    with FakeTensorMode(), OperationCounter() as counter:
        query = torch.empty(2, 3, 4, 8, requires_grad=True)
        memory = torch.empty(2, 3, 5, 8)
        functional.scaled_dot_product_attention(query, memory, memory).sum().backward()
    # Two products of 4 queries and 5 keys in each of 6 heads; five with the way back.
    assert sum(operation.flops for operation in counter.operations) == 7 * 2 * 6 * 4 * 5 * 8


def test_behaviours_have_their_attributes(load) -> None:
    lookups = [f"{key}=40" for key in ("recent_item", "recent_category", "recent_action")]
    din = str(CONFIGS / "interest" / "din.toml")
    settings = [din, *(f"planning.pooling_factors.{lookup}" for lookup in lookups)]
    settings += ["planning.batch_size=64", "model.interest.attention.layer_sizes=[4]"]
    plain, told = (
        count_dense(read_workload(load(*settings, f"data.history.dayparts={parts}")))
        for parts in (1, 6)
    )
    # A vector of width 16 for each part of the day, and the 16 more that the unit reads of it.
    assert told.num_parameters == plain.num_parameters + 6 * 16 + 16 * 4


@pytest.mark.parametrize(
    "preset",
    [p if p in CUT else pytest.param(p, marks=pytest.mark.slow) for p in COUNTED],
)
def test_every_module_can_be_counted(tiny_dataset: Path, preset: str) -> None:
    layers = [str(CONFIGS / "interest" / f"{preset}.toml"), f"data.dir={tiny_dataset}"]
    if preset == "none":
        layers.append("model.interaction.history_counts=false")
    cost = count_dense(read_workload(load_config(PlanningExperimentConfig, layers)))
    assert cost.flops > 0
    # Work in pieces for a processor's cache would be tens of thousands.
    assert 50 < len(cost.operations) < 5000


@pytest.mark.slow
def test_a_batch_too_large_to_be_made_is_counted_in_proportion(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = replace(workload, batch_size=512)
    counted = count_dense(large)
    monkeypatch.setattr(dense_module, "_MOST_COUNTED", 256)
    scaled = count_dense(large)
    assert scaled.flops == pytest.approx(counted.flops, rel=0.02)
    assert scaled.num_bytes == pytest.approx(counted.num_bytes, rel=0.05)
    assert scaled.num_parameters == counted.num_parameters
