"""How fast collectives are follows from the links."""

import pytest
from torchrec.distributed.planner.types import CollectiveType

from cdp_torchrec.distributed.plans.hardware import hardware_names, load_hardware
from cdp_torchrec.distributed.plans.topology import CollectiveBandwidths, make_topology

LINKS = CollectiveBandwidths(intra_node=100.0, inter_node=10.0)
RINGS = (CollectiveType.ALL_REDUCE, CollectiveType.ALL_GATHER, CollectiveType.REDUCE_SCATTER)


@pytest.mark.parametrize("collective", [*RINGS, CollectiveType.ALL_TO_ALL])
def test_inside_a_node_only_its_links_count(collective: CollectiveType) -> None:
    assert LINKS.get_bw(8, 8, collective) == 100


@pytest.mark.parametrize("collective", RINGS)
def test_a_ring_leaves_a_node_over_the_links_of_all_its_ranks(collective: CollectiveType) -> None:
    assert LINKS.get_bw(4, 32, collective) == 4 * 10
    assert LINKS.get_bw(16, 32, collective) == 100, "then the node itself is the narrow place"


def test_what_an_all_to_all_keeps_in_the_node_does_not_need_the_network() -> None:
    leaving = 4 / 8  # of 2 nodes of 4 ranks
    assert LINKS.get_bw(4, 8, CollectiveType.ALL_TO_ALL) == pytest.approx(10 / leaving)


@pytest.mark.parametrize("name", hardware_names())
def test_the_planner_knows_memory_and_links_of_named_hardware(name: str) -> None:
    hardware = load_hardware(name)
    topology = make_topology(hardware, 2 * hardware.ranks_per_node)
    assert topology.compute_device == hardware.device
    assert topology.local_world_size == hardware.ranks_per_node
    storage = topology.devices[0].storage
    held = storage.hbm if hardware.device == "cuda" else storage.ddr
    assert held == hardware.memory_gb * 1e9
    assert topology.intra_host_bw == hardware.intra_node_gb_s * 1e6, "bytes per ms"
