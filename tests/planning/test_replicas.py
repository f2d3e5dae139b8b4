"""Several copies of the tables, planned: what keeps them alike, and what it takes."""

import pytest

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.hardware import load_hardware
from cdp_torchrec.planning.case import FeasiblePlan, make_cases
from cdp_torchrec.planning.estimator import estimate
from cdp_torchrec.planning.explore import explore
from cdp_torchrec.planning.replicas import ReplicaSync
from cdp_torchrec.planning.workload import Workload

BY_ROWS = 'planning.strategies=["row_wise"]'
GROUPS = "sharding.sharding_group_size=4"


def planned(
    load, workload: Workload, hardware: str, *arguments: str, strategy: str = BY_ROWS
) -> FeasiblePlan:
    """The only case, without a dense part."""
    settings = load(strategy, f'planning.hardware=["{hardware}"]', *arguments)
    (case,) = make_cases(settings, {hardware: load_hardware(hardware)})
    return FeasiblePlan(case, estimate(workload.problem(case)), dense_ms=0.0, all_reduce_ms=0.0)


def test_weights_and_state_of_every_copy_are_averaged_where_no_gradient_is_left(
    load, workload: Workload
) -> None:
    one = planned(load, workload, "a10")
    four = planned(load, workload, "a10", "planning.world_sizes=[16]", GROUPS)
    sync = four.replicas
    assert sync is not None
    assert one.replicas is None
    assert (sync.num_replicas, sync.group_size, sync.averages_weights) == (4, 4, True)
    assert (four.estimate.memory == one.estimate.memory).all()
    weights = sum(
        t.num_embeddings * t.embedding_dim * 4 for t in workload.tables if t.num_embeddings > 2000
    )
    assert sync.num_bytes == pytest.approx(3 * weights / 4, rel=1e-3)  # with two moments of Adam
    # Each of 4 A10s of a node has a link of 2.5 GB/s to the others of its ring.
    seconds = 2 * 3 / 4 * sync.num_bytes / 2.5e9
    assert sync.step_ms == pytest.approx(1e3 * seconds, rel=0.01)
    assert four.step_ms == pytest.approx(one.step_ms + sync.step_ms)
    seldom = planned(
        load, workload, "a10", "planning.world_sizes=[16]", GROUPS, "planning.replica_sync_steps=10"
    )
    assert seldom.replica_ms == pytest.approx(sync.step_ms / 10)
    assert "NOT THE MATHEMATICS OF ONE COPY" in sync.lines()[1]


def test_the_cache_of_a_table_in_host_memory_is_not_averaged_beside_it(
    load, workload: Workload
) -> None:
    ranks = ("planning.world_sizes=[16]", GROUPS)
    plain = planned(load, workload, "a10", *ranks).replicas
    own = 'sharding.tables.user={types=["row_wise"], kernels=["fused_uvm_caching"]}'
    cached = (*ranks, "sharding.strategy=row_wise", own)
    constraints = 'planning.strategies=["constraints"]'
    in_host_memory = planned(load, workload, "a10", *cached, strategy=constraints)
    assert in_host_memory.estimate.host_memory.any()
    assert plain is not None
    assert in_host_memory.replicas is not None
    assert in_host_memory.replicas.num_bytes == pytest.approx(plain.num_bytes, rel=1e-3)


def test_gradients_of_every_copy_are_averaged_where_training_can(load, workload: Workload) -> None:
    two = planned(
        load, workload, "cpu", "planning.world_sizes=[4]", "sharding.sharding_group_size=2"
    )
    sync = two.replicas
    assert isinstance(sync, ReplicaSync)
    assert (sync.num_replicas, sync.every_steps, sync.averages_weights) == (2, 1, False)
    weights = sum(
        t.num_embeddings * t.embedding_dim * 4 for t in workload.tables if t.num_embeddings > 2000
    )
    assert sync.num_bytes == pytest.approx(weights / 2, rel=1e-3)
    assert "those of one copy" in sync.lines()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["planning.world_sizes=[4, 8]", "sharding.sharding_group_size=8"],
            r"group_size = 8: expected a divisor of the number of ranks 4: 1, 2, 4",
        ),
        (
            ["planning.world_sizes=[12]", "sharding.sharding_group_size=3"],
            r"group_size = 3: is neither a part of a node of 4 \(a10\) that fills it",
        ),
        (["planning.replica_sync_steps=10"], r"sync_steps = 10: there is one copy of the tables"),
        (
            [
                "planning.replica_sync_steps=10",
                'planning.hardware=["cpu"]',
                "sharding.sharding_group_size=2",
            ],
            r"sync_steps = 10: gradients are averaged in every step here; leave it out",
        ),
    ],
)
def test_groups_that_cannot_be_and_steps_that_would_change_nothing_are_refused(
    arguments: list[str], message: str, load
) -> None:
    with pytest.raises(ConfigError, match=message):
        explore(load(*arguments))
