"""Estimates are bytes by bandwidth, and those of a plan do not depend on who made it."""

from dataclasses import replace

import numpy as np
import pytest

from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.plans.hardware import load_hardware
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.planning.case import PlanCase
from cdp_torchrec.planning.estimate import PlanEstimate, ShardEstimate
from cdp_torchrec.planning.estimator import estimate, estimate_plan
from cdp_torchrec.planning.workload import Workload

ADAM = SparseOptimizerConfig()
BATCH_SIZE = 1024


def pose(
    workload: Workload,
    strategy: str,
    *,
    hardware: str = "h100",
    world_size: int = 4,
    optimizer: SparseOptimizerConfig = ADAM,
) -> PlanProblem:
    return replace(workload, batch_size=BATCH_SIZE).problem(
        PlanCase(
            hardware_name=hardware,
            hardware=load_hardware(hardware),
            world_size=world_size,
            strategy="constraints",
            sharding=ShardingConfig.model_validate({"strategy": strategy}),
            optimizer=optimizer,
        )
    )


def shards(plan: PlanEstimate, table: str) -> tuple[ShardEstimate, ...]:
    return next(t.shards for t in plan.tables if t.table.name == table)


@pytest.mark.parametrize("strategy", ["table_wise", "row_wise", "column_wise", "table_row_wise"])
def test_an_all_to_all_or_ring_moves_its_buffer_over_the_link(
    workload: Workload, strategy: str
) -> None:
    plan = estimate(pose(workload, strategy))
    for shard in shards(plan, "t_query"):
        buffer = BATCH_SIZE * 4 * shard.columns * 4
        assert shard.forward_communication_ms == pytest.approx(1e3 * buffer / 350e9)


def test_lookup_reads_ids_and_rows_and_writes_sums(workload: Workload) -> None:
    plan = estimate(pose(workload, "row_wise", hardware="h100"))
    assert workload.pooling_factors["query_id"] == 0.1
    ids = BATCH_SIZE  # of 4 ranks on 4 ranks; empty bags count as one id, since they are sent
    moved = ids * 8 + ids * 16 * 4 + BATCH_SIZE * 4 * 16 * 4
    (first, *_) = shards(plan, "t_query")
    assert first.lookup_ms == pytest.approx(1e3 * moved / 3350e9, rel=0.01)


def test_a_rank_holds_its_rows_and_adam_holds_two_numbers_for_each_weight(
    workload: Workload,
) -> None:
    rows = workload.layout.tables["user"].num_embeddings
    adam = shards(estimate(pose(workload, "row_wise")), "t_user")
    assert sum(shard.weight_bytes for shard in adam) == rows * 16 * 4
    assert sum(shard.optimizer_bytes for shard in adam) == 2 * rows * 16 * 4
    adagrad = SparseOptimizerConfig(kind="rowwise_adagrad")
    small = shards(estimate(pose(workload, "row_wise", optimizer=adagrad)), "t_user")
    assert sum(shard.optimizer_bytes for shard in small) == rows * 4


@pytest.mark.parametrize("strategy", ["table_wise", "row_wise", "data_parallel"])
def test_a_gradient_that_is_dense_takes_as_much_as_the_weights(
    workload: Workload, strategy: str
) -> None:
    """As measured; Adam is not fused on CPUs, row-wise Adagrad is, but for whole copies."""
    adagrad = SparseOptimizerConfig(kind="rowwise_adagrad")
    dense, fused = (
        shards(estimate(pose(workload, strategy, hardware="cpu", optimizer=optimizer)), "t_user")
        for optimizer in (ADAM, adagrad)
    )
    for a, b in zip(dense, fused, strict=True):
        more = 0 if strategy == "data_parallel" else a.weight_bytes
        assert a.activation_bytes == b.activation_bytes + more
        assert a.activation_bytes > a.weight_bytes


def test_passes_over_a_dense_gradient_count_once(workload: Workload) -> None:
    """TorchRec has 9.22 of them in the backward communication of data-parallel tables alone."""
    split, copied = (
        shards(estimate(pose(workload, strategy, hardware="cpu")), "t_user")[0]
        for strategy in ("row_wise", "data_parallel")
    )
    pass_ms = 1e3 / (load_hardware("cpu").host_bandwidth_gb_s * 1e9)
    assert split.optimizer_ms == pytest.approx(3 * split.weight_bytes * pass_ms)
    assert copied.backward_communication_ms > 9.2 * copied.weight_bytes * pass_ms
    assert copied.optimizer_ms == 0.0


def test_parts_add_up_to_what_the_ranks_need(workload: Workload) -> None:
    plan = estimate(pose(workload, "auto"))
    assert np.allclose(plan.memory_by_table.sum(0), plan.memory)
    assert np.allclose(plan.time_by_table.sum(0), plan.time)
    assert plan.embedding_ms == plan.time[plan.critical_rank]


@pytest.mark.parametrize(
    "strategy", ["auto", "table_wise", "row_wise", "column_wise", "table_row_wise", "grid_shard"]
)
@pytest.mark.parametrize("hardware", ["a10", "cpu"])
def test_a_plan_that_exists_has_the_estimates_of_its_search(
    workload: Workload, strategy: str, hardware: str
) -> None:
    problem = pose(workload, strategy, hardware=hardware, world_size=8)
    searched = estimate(problem)
    given = estimate_plan(pose(workload, "auto", hardware=hardware, world_size=8), searched.plan)
    assert given.tables == searched.tables
    assert given.reserved_bytes == searched.reserved_bytes


def test_better_hardware_is_faster(workload: Workload) -> None:
    a10, h100 = (estimate(pose(workload, "row_wise", hardware=name)) for name in ("a10", "h100"))
    by_link = a10.time_by_kind[1].max() / h100.time_by_kind[1].max()
    assert by_link == pytest.approx(350 / 10)


def test_every_table_is_in_the_plan_once(workload: Workload) -> None:
    plan = estimate(pose(workload, "auto"))
    assert [t.table.entity for t in plan.tables] == sorted(workload.layout.tables)


def test_small_tables_are_replicated(workload: Workload) -> None:
    for table in estimate(pose(workload, "auto")).tables:
        is_small = table.table.num_embeddings <= ShardingConfig().small_table_rows
        assert (table.sharding_type == "data_parallel") == is_small
