"""What a plan costs in a step however little its tables have to do."""

from collections.abc import Iterable

from cdp_torchrec.distributed.plans.hardware import HardwareConfig

_COLLECTIVES = {"data_parallel": 0, "table_row_wise": 6, "grid_shard": 6}
"""Of tables of one kind of sharding in a step: lengths and ids on their way in, embeddings and
gradients on their way out and back, the last two in two stages where a node and the nodes take
turns. Gradients of data-parallel tables go with those of the dense part."""
_USUAL_COLLECTIVES = 4

Group = tuple[str, str, str]
"""Path of the collection, sharding type and compute kernel: what tables share one lookup by."""


def group_ms(hardware: HardwareConfig, world_size: int, groups: Iterable[Group]) -> float:
    """Fixed time of the lookups and collectives of a step, on every rank."""
    groups = set(groups)
    found = len(groups) * hardware.fixed_cost("lookup_us") / 1e3
    if world_size > 1:
        kinds = {(path, sharding_type) for path, sharding_type, _ in groups}
        calls = sum(_COLLECTIVES.get(kind, _USUAL_COLLECTIVES) for _, kind in kinds)
        found += calls * hardware.collective_ms(world_size - 1)
    return found
