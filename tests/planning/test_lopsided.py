"""Advice for plans in which one rank has far more to do, or to hold, than the others."""

import re
import shlex
from dataclasses import replace

import pytest

from cdp_torchrec.distributed.plans.hardware import load_hardware
from cdp_torchrec.planning.case import FeasiblePlan, make_cases
from cdp_torchrec.planning.config import PlanningExperimentConfig
from cdp_torchrec.planning.estimator import estimate
from cdp_torchrec.planning.lopsided import look_for_balance
from cdp_torchrec.planning.text import render_imbalance
from cdp_torchrec.planning.workload import Workload, read_workload

BY_TABLE = 'planning.strategies=["table_wise"]'
OWN = 'planning.strategies=["constraints"]'
LARGE_USER = "planning.rows.user=80000000"  # x 16 x 4 bytes x 3 are 15.4 GB
LONG_HISTORIES = "planning.pooling_factors.history_item_id_0=300.0"


def planned(config: PlanningExperimentConfig, workload: Workload) -> FeasiblePlan:
    """The only case, without a dense part."""
    (case,) = make_cases(config, {"a10": load_hardware("a10")})
    return FeasiblePlan(case, estimate(workload.problem(case)), dense_ms=0.0, all_reduce_ms=0.0)


def test_the_table_that_the_others_wait_for_is_named_with_settings_that_gain_what_is_said(
    load,
) -> None:
    config = load(BY_TABLE, LONG_HISTORIES)
    workload = read_workload(config)
    result = planned(config, workload)
    found = look_for_balance(result, workload)
    assert found is not None
    rank = result.estimate.critical_rank
    assert found.reason.startswith(f"rank {rank} takes")
    assert "because of t_item (table_wise)" in found.reason
    setting, gain = found.fixes[0].split(": step ")
    again = planned(load(OWN, *shlex.split(setting), LONG_HISTORIES), workload)
    before, after = (float(number) for number in re.findall(r"[\d.]+", gain)[:2])
    assert before == pytest.approx(result.step_ms, rel=0.01)
    assert after == pytest.approx(again.step_ms, rel=0.01)
    assert after < 0.99 * before


def test_even_ranks_need_no_advice(load, workload: Workload) -> None:
    result = planned(load('planning.strategies=["row_wise"]'), workload)
    assert look_for_balance(result, workload) is None


def test_what_hardly_matters_to_the_step_needs_none(load, workload: Workload) -> None:
    result = planned(load(BY_TABLE), workload)
    assert result.estimate.time_balance > 1.5
    assert look_for_balance(replace(result, dense_ms=1e3), workload) is None


@pytest.mark.slow
def test_a_full_rank_among_emptier_ones_is_named_too(load) -> None:
    config = load(BY_TABLE, LARGE_USER)
    workload = read_workload(config)
    result = planned(config, workload)
    found = look_for_balance(replace(result, dense_ms=1e3), workload)
    assert found is not None
    assert "because of t_user (table_wise) 15.4 GB" in found.reason
    assert "sharding.tables.user=" in found.fixes[0]
    before, after = map(float, re.findall(r"fullest rank ([\d.]+) -> ([\d.]+)", found.fixes[0])[0])
    assert after < 0.8 * before


@pytest.mark.slow
def test_of_a_full_rank_a_type_that_the_planner_was_free_to_take_helps_too(load) -> None:
    """Fails where it is left out because the planner, which looks for time, did not take it."""
    config = load(OWN, 'sharding.tables.user={types=["table_wise", "row_wise"]}', LARGE_USER)
    workload = read_workload(config)
    result = planned(config, workload)
    (user,) = (t for t in result.estimate.tables if t.table.entity == "user")
    assert user.sharding_type == "table_wise"
    found = look_for_balance(replace(result, dense_ms=1e3), workload)
    assert found is not None
    assert any('types=["row_wise"]' in fix for fix in found.fixes)


def test_where_nothing_helps_the_text_says_so(load) -> None:
    config = load(BY_TABLE, "planning.batch_size=1024")
    workload = read_workload(config)
    found = look_for_balance(planned(config, workload), workload)
    assert found is not None
    assert found.fixes == []
    assert "gains enough" in render_imbalance("a10-4-table_wise", found)
