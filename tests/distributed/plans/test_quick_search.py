"""The quick search is TorchRec's search."""

import pytest
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner

from cdp_torchrec.distributed.plans import planner as planner_module
from cdp_torchrec.distributed.plans.search import SearchedPlan, search_plan
from tests.distributed.plans.problems import Tables, problem

ROWS = {f"table_{place}": 10**place for place in (1, 3, 5, 7)}


def search(world_size: int) -> SearchedPlan:
    tables = Tables(ROWS, {"item": 200_000})
    return search_plan(problem(tables, world_size=world_size, hardware="a10", small_table_rows=100))


@pytest.mark.parametrize("world_size", [2, 8])
def test_options_proposals_and_plan_are_those_of_the_stock_search(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = search(world_size)
    monkeypatch.setattr(
        planner_module.ReproducibleEnumerator,
        "populate_estimates",
        EmbeddingEnumerator.populate_estimates,
    )
    monkeypatch.setattr(planner_module, "QuickPartitioner", GreedyPerfPartitioner)
    stock = search(world_size)
    assert quick.num_proposals == stock.num_proposals
    assert quick.plan.plan == stock.plan.plan
    for ours, theirs in zip(quick.options, stock.options, strict=True):
        assert type(ours) is not type(theirs), "the stock search has run"
        assert ours.name == theirs.name
        assert ours.shards == theirs.shards, "sizes, ranks, memory and time"
