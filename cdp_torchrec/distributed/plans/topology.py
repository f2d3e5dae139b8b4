"""A cluster as TorchRec's planner knows it."""

from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import (
    CollectiveType,
    GeneralizedCommsBandwidth,
    KernelConfig,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.planner.types import (
    HardwareConfig as TopologyHardware,
)

from cdp_torchrec.distributed.plans.hardware import GB, HardwareConfig

_MS_PER_S = 1000
_RINGS = (CollectiveType.REDUCE_SCATTER, CollectiveType.ALL_GATHER, CollectiveType.ALL_REDUCE)


def make_topology(hardware: HardwareConfig, world_size: int) -> Topology:
    """The cluster of `world_size` ranks on such hardware."""
    return TopologyFactory.create_topology(
        trainer_config=TrainerConfig(
            world_size=world_size, local_world_size=min(world_size, hardware.ranks_per_node)
        ),
        hardware_config=TopologyHardware(
            hbm_cap_bytes=int(hardware.device_memory_gb * GB) or None,
            ddr_cap_bytes=int(hardware.host_memory_gb * GB),
            hbm_mem_bw=_per_ms(hardware.device_bandwidth_gb_s),
            ddr_mem_bw=_per_ms(hardware.host_bandwidth_gb_s),
            hbm_to_ddr_mem_bw=_per_ms(hardware.host_to_device_gb_s),
        ),
        kernel_config=KernelConfig(
            compute_device=hardware.device,
            # Without it TorchRec plans with a V100's bandwidths, and does not say so.
            use_hardware_based_bandwidth=True,
            generalized_comms_bandwidths=CollectiveBandwidths(
                intra_node=hardware.intra_node_gb_s * GB / _MS_PER_S,
                inter_node=hardware.inter_node_gb_s * GB / _MS_PER_S,
            ),
        ),
    )


def link_of_collective(
    hardware: HardwareConfig, world_size: int, collective: CollectiveType
) -> float:
    """Bytes of one rank's buffer per millisecond, in a collective of all ranks."""
    bandwidths = CollectiveBandwidths(
        intra_node=hardware.intra_node_gb_s * GB / _MS_PER_S,
        inter_node=hardware.inter_node_gb_s * GB / _MS_PER_S,
    )
    return bandwidths.get_bw(min(world_size, hardware.ranks_per_node), world_size, collective)


def _per_ms(gb_s: float | None) -> float | None:
    return None if gb_s is None else gb_s * GB / _MS_PER_S


class CollectiveBandwidths(GeneralizedCommsBandwidth):
    """Bandwidth that each collective reaches, as bytes of one rank's buffer per millisecond.

    TorchRec's own takes every collective that leaves the node for one link between nodes. Rings
    pass each byte on once per node, over the links of all its ranks; and of an all-to-all, what
    stays in the node does not need the network.
    """

    def __init__(self, intra_node: float, inter_node: float) -> None:
        """Of links of one rank, one direction, in bytes per millisecond.

        Args:
            intra_node: to the other ranks on the node.
            inter_node: to ranks on other nodes.
        """
        self._intra = intra_node
        self._inter = inter_node

    @property
    def intra_host_bw(self) -> float:
        """Inside a node."""
        return self._intra

    @property
    def inter_host_bw(self) -> float:
        """Between nodes."""
        return self._inter

    def get_bw(
        self, local_world_size: int, world_size: int, collective_type: CollectiveType
    ) -> float:
        """Bandwidth of a collective of `world_size` ranks, `local_world_size` on each node."""
        one_node = world_size <= local_world_size
        if collective_type in _RINGS:
            return self._intra if one_node else min(self._intra, self._inter * local_world_size)
        if one_node:
            return self._intra
        leaving = (world_size - local_world_size) / world_size
        staying = (local_world_size - 1) / world_size
        return 1 / max(leaving / self._inter, staying / self._intra)

    def __hash__(self) -> int:
        """TorchRec hashes topologies."""
        return hash((self._intra, self._inter))

    def __eq__(self, other: object) -> bool:
        """Same links."""
        return isinstance(other, CollectiveBandwidths) and vars(self) == vars(other)
