"""Metrics of 2 and 3 gloo ranks equal those of one process, bit by bit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from cdp_torchrec.metrics import ImpressionMetrics
from cdp_torchrec.metrics.ranks import Ranks
from tests.distributed.spawn import run_ranks

pytestmark = pytest.mark.distributed

NUM_IMPRESSIONS = 3000
SCORES = ("tied", "nearly constant", "constant")
SPREADS = ("mixed", "one rank has none", "one rank has all")
SMALL_BOUND = 300


def make_log(scores: str) -> dict[str, Any]:
    random = np.random.default_rng(0)
    request = random.integers(0, 900, NUM_IMPRESSIONS)
    probability = {
        "tied": np.round(random.beta(1.0, 6.0, NUM_IMPRESSIONS), 2),
        "nearly constant": 0.5 + random.normal(size=NUM_IMPRESSIONS) * 1e-5,
        "constant": np.full(NUM_IMPRESSIONS, 0.5),
    }[scores]
    clicked = random.random(NUM_IMPRESSIONS) < 0.1 + 0.5 * probability
    return {
        "probability": torch.from_numpy(probability).float(),
        "labels": torch.from_numpy(clicked).float(),
        "user_id": torch.from_numpy(request % 200),
        "request_id": torch.from_numpy(request),
        "strata": {"half": torch.from_numpy(random.integers(0, 2, NUM_IMPRESSIONS))},
    }


def rows_of_rank(spread: str, rank: int, world_size: int) -> NDArray[np.int64]:
    """Indices of a rank's impressions; users and requests are split over ranks."""
    owner = np.random.default_rng(1).integers(0, world_size, NUM_IMPRESSIONS)
    if spread == "one rank has none":
        owner = np.where(owner == 0, world_size - 1, owner)
    if spread == "one rank has all":
        owner[:] = world_size - 1
    return np.flatnonzero(owner == rank)


def evaluate(log: dict[str, Any], rows: NDArray[np.int64], bound: int) -> dict[str, Any]:
    metrics = ImpressionMetrics(strata={"half": ("first", "second")}, max_rows_in_memory=bound)
    batch = {name: column[rows] for name, column in log.items() if name != "strata"}
    metrics.update(**batch, strata={"half": log["strata"]["half"][rows]})
    report = metrics.compute(num_bootstrap=6, seed=3)
    replicates = {name: values.tolist() for name, values in report.replicates.items()}
    return {**report.to_dict(), "replicates": replicates}


def all_scenarios() -> dict[str, Any]:
    """What one rank finds."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    largest_arrival = 0
    route = Ranks.route

    def watched_route(self: Ranks, parts: Sequence[NDArray]) -> NDArray:
        nonlocal largest_arrival
        arrived = route(self, parts)
        if arrived.dtype.names:
            largest_arrival = max(largest_arrival, len(arrived))
        return arrived

    Ranks.route = watched_route
    results: dict[str, Any] = {}
    for scores in SCORES:
        log = make_log(scores)
        for spread in SPREADS:
            rows = rows_of_rank(spread, rank, world_size)
            for bound in (SMALL_BOUND, NUM_IMPRESSIONS):
                largest_arrival = 0
                report = evaluate(log, rows, bound)
                key = f"{scores}, {spread}, {bound}"
                results[key] = {"report": report, "largest_arrival": largest_arrival}

    log = make_log("tied")
    log["request_id"] = log["request_id"] % 7
    try:
        evaluate(log, rows_of_rank("mixed", rank, world_size), NUM_IMPRESSIONS)
    except ValueError as error:
        results["conflict"] = str(error)

    subgroup = dist.new_group([world_size - 1])
    if rank == world_size - 1:
        assert isinstance(subgroup, dist.ProcessGroup)
        metrics = ImpressionMetrics(process_group=subgroup)
        batch = {name: column for name, column in make_log("tied").items() if name != "strata"}
        metrics.update(**batch)
        results["subgroup"] = metrics.compute(num_bootstrap=0).auc
    return results


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def ranks_of(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Results of every rank of a run with 2 and with 3 ranks."""
    return run_ranks(request.param, all_scenarios)


@pytest.mark.parametrize("scores", SCORES)
def test_ranks_report_what_one_process_reports(ranks_of: list[dict[str, Any]], scores: str) -> None:
    alone = evaluate(make_log(scores), np.arange(NUM_IMPRESSIONS), NUM_IMPRESSIONS)
    for spread in SPREADS:
        for bound in (SMALL_BOUND, NUM_IMPRESSIONS):
            for results in ranks_of:
                assert results[f"{scores}, {spread}, {bound}"]["report"] == alone


@pytest.mark.parametrize("scores", SCORES)
def test_no_rank_receives_much_more_than_its_share_or_the_bound(
    ranks_of: list[dict[str, Any]], scores: str
) -> None:
    share = NUM_IMPRESSIONS / len(ranks_of)
    for spread in SPREADS:
        for results in ranks_of:
            for bound in (SMALL_BOUND, NUM_IMPRESSIONS):
                arrived = results[f"{scores}, {spread}, {bound}"]["largest_arrival"]
                assert arrived < 1.6 * min(share, bound)


def test_every_rank_refuses_a_request_of_several_users(ranks_of: list[dict[str, Any]]) -> None:
    messages = {results["conflict"] for results in ranks_of}
    assert len(messages) == 1
    assert "have impressions of more than one user" in messages.pop()


def test_a_process_group_of_one_rank_evaluates_alone(ranks_of: list[dict[str, Any]]) -> None:
    alone = evaluate(make_log("tied"), np.arange(NUM_IMPRESSIONS), NUM_IMPRESSIONS)
    assert ranks_of[-1]["subgroup"] == alone["auc"]
