"""The quick search is TorchRec's search."""

import pytest
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner

from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.plans import planner as planner_module
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.plans.hardware import load_hardware
from cdp_torchrec.planning.estimate import PlanEstimate
from cdp_torchrec.planning.estimator import estimate_plan
from cdp_torchrec.planning.workload import Workload

ADAM = SparseOptimizerConfig()


def search(workload: Workload, world_size: int) -> PlanEstimate:
    return estimate_plan(
        workload.make_model(ADAM, "cuda"),
        ShardingConfig(small_table_rows=100),
        ADAM,
        hardware=load_hardware("a10"),
        world_size=world_size,
        batch_size=512,
        pooling_factors=workload.pooling_factors,
    )


@pytest.mark.parametrize("world_size", [2, 8])
def test_options_proposals_and_plan_are_those_of_the_stock_search(
    workload: Workload, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = search(workload, world_size)
    monkeypatch.setattr(
        planner_module.ReproducibleEnumerator,
        "populate_estimates",
        EmbeddingEnumerator.populate_estimates,
    )
    monkeypatch.setattr(planner_module, "QuickPartitioner", GreedyPerfPartitioner)
    stock = search(workload, world_size)
    assert quick.num_proposals == stock.num_proposals
    assert quick.tables == stock.tables
