"""Stored results that cannot be read, and those that are not stored."""

import json
from pathlib import Path

import pytest

from cdp_torchrec.distributed.plans.hardware import load_hardware
from cdp_torchrec.planning import cache as cache_module
from cdp_torchrec.planning.cache import ResultCache
from cdp_torchrec.planning.case import FeasiblePlan, InfeasiblePlan, PlanCase, make_cases
from cdp_torchrec.planning.dense import DenseCost, Operation
from cdp_torchrec.planning.estimator import estimate
from cdp_torchrec.planning.workload import Workload

COST = DenseCost((Operation(1, 2),), 3)
DAMAGE = ["", "{", "[]", "{}", "null", "7"]


@pytest.fixture
def case(load) -> PlanCase:
    """One whose search takes a moment."""
    (case,) = make_cases(
        load('planning.strategies=["table_wise"]', "planning.world_sizes=[1]"),
        {"a10": load_hardware("a10")},
    )
    return case


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_count_is_made_anew(
    damage: str,
    workload: Workload,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cache_module, "count_dense", lambda _: COST)
    cache = ResultCache(tmp_path, workload)
    cache.dense(workload)
    (path,) = tmp_path.glob("*.json")
    path.write_text(damage)
    assert cache.dense(workload) == COST
    assert f"{path} is damaged, and is made anew" in caplog.text
    assert json.loads(path.read_text())["num_parameters"] == 3


def test_a_damaged_plan_is_made_anew(case: PlanCase, workload: Workload, tmp_path: Path) -> None:
    cache = ResultCache(tmp_path, workload)
    planned = FeasiblePlan(case, estimate(workload.problem(case)), 1.0, 2.0)
    cache.outcome(case, COST, lambda: planned)
    for suffix in (".json", ".plan"):
        (path,) = tmp_path.glob(f"*{suffix}")
        whole = path.read_text()
        for damage in DAMAGE:
            path.write_text(damage)
            assert cache.outcome(case, COST, lambda: planned) is planned
            assert path.read_text() == whole
        path.unlink()
        assert cache.outcome(case, COST, lambda: planned) is planned


def test_a_search_that_may_have_lacked_time_is_made_again(
    case: PlanCase, workload: Workload, tmp_path: Path
) -> None:
    cache = ResultCache(tmp_path, workload)
    slow = InfeasiblePlan(case, ["no plan for 4 ranks: after 1 proposal"], [])
    explained = InfeasiblePlan(case, ["rank 0 lacks 1 GB"], ["8 ranks instead of 4"])
    assert cache.outcome(case, COST, lambda: slow) is slow
    assert cache.outcome(case, COST, lambda: explained) is explained
    assert cache.outcome(case, COST, lambda: slow) == explained
