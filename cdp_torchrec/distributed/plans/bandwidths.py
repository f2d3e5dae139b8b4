"""How fast collectives are on a cluster of nodes."""

from torchrec.distributed.planner.types import CollectiveType, GeneralizedCommsBandwidth

_RINGS = (CollectiveType.REDUCE_SCATTER, CollectiveType.ALL_GATHER, CollectiveType.ALL_REDUCE)


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
