"""Configuration of the sharding."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cdp_torchrec.config import MAY_CHANGE, Config, ConfigConflicts

TypeName = Literal[
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
    "data_parallel",
]
"""TorchRec's sharding types."""
Precision = Literal["fp32", "fp16", "bf16"]
"""Number format of embeddings on their way between ranks."""
KernelName = Literal["fused", "fused_uvm", "fused_uvm_caching"]
ProposerName = Literal["grid_search", "greedy", "greedy_sum", "uniform", "dynamic_programming"]
"""Ways in which TorchRec's planner goes through the options of all tables."""


class TableShardingConfig(Config):
    """How one table may be sharded; what is not named is as for all tables."""

    types: Annotated[tuple[TypeName, ...], Field(min_length=1)] | None = None
    """Sharding types to choose from."""
    kernels: Annotated[tuple[KernelName, ...], Field(min_length=1)] | None = None
    """Compute kernels to choose from, on CUDA: fused keeps the table in the GPU's memory,
    fused_uvm in the host's, fused_uvm_caching in the host's with a cache on the GPU."""
    cache_load_factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the rows that the cache of fused_uvm_caching holds; without it, a fifth."""
    column_width: PositiveInt | None = None
    """Columns of one shard of a table split by columns: a multiple of 4 that divides the width
    of the embedding; without it, half of the embedding, or less where the local search finds that
    faster."""


class CommunicationConfig(Config):
    """Precision of embeddings between ranks; tables and the model stay fp32.

    Two bytes instead of four halve the messages and round what arrives, so the losses are no
    longer those of fp32; nor are the scores of an evaluation on several ranks. Data-parallel
    tables have nothing to send, and their gradients stay fp32.
    """

    forward: Precision = "fp32"
    """Of the embeddings. fp16 rounds to 11 binary digits and ends at 65504; bf16 rounds to 8 and
    has the range of fp32."""
    backward: Precision = "fp32"
    """Of their gradients. fp16 is scaled, since the gradients of a mean are small, and ends at 4:
    what is beyond becomes 4. bf16 needs no scale."""


class ShardingConfig(Config):
    """Where tables live. The plan never changes the mathematics."""

    strategy: Annotated[Literal["auto", TypeName], MAY_CHANGE] = "auto"
    """auto: TorchRec's planner chooses the type of each large table; the other values force one
    type for all large tables. Tables that sequences read have no table_row_wise,
    table_column_wise and grid_shard: they are row_wise or column_wise then."""
    small_table_rows: Annotated[NonNegativeInt, MAY_CHANGE] = 2000
    """With several ranks, tables with at most this many rows are replicated (data-parallel)."""
    tables: Annotated[Mapping[str, TableShardingConfig], MAY_CHANGE] = {}
    """Constraints by entity, in place of strategy and small_table_rows."""
    plan: Annotated[Path | None, MAY_CHANGE] = None
    """A plan file to use as it is, such as the plan.json of a run; then nothing is planned. A
    run that goes on with the same number of ranks keeps it; with another number it is planned."""
    hardware: Annotated[str | None, MAY_CHANGE] = None
    """Name of the hardware or path of its .toml, for the planner's estimates; without it, what
    the machine shows of itself."""
    sharding_group_size: Annotated[PositiveInt | None, MAY_CHANGE] = None
    """Ranks that hold one copy of the tables (2-D parallelism): it divides the number of ranks, and
    each further group of neighbours holds a replica. In each step the gradients of the replicas are
    averaged, so that they stay alike and the losses are those of one copy; that takes adam on
    CPUs, and sharding types that do not tell nodes apart. Without it, and in a run that goes on
    with another number of ranks, all ranks share one copy."""
    communication: CommunicationConfig = CommunicationConfig()
    """Precision of embeddings between ranks."""
    prefetch: Annotated[bool, MAY_CHANGE] = False
    """Fill the GPU's cache of fused_uvm_caching tables for the next batch while the model works
    on this one. Takes GPU memory for one more batch. The planner then takes such a table for one
    in the GPU's memory, however small its cache: its time is a lower bound."""
    search: Annotated[Literal["improved", "torchrec"], MAY_CHANGE] = "improved"
    """torchrec: the best plan of the planner's proposers; improved: what a local search makes of
    it, which moves, splits and re-types tables of the slowest rank, also into columns of a quarter
    and an eighth of their width, and begins anew from plans of its own. It is taken if its estimate
    is better by 2 % at least."""
    search_seconds: Annotated[PositiveInt, MAY_CHANGE] = 60
    """Time that the search for a plan may take: half of it TorchRec's proposers, a quarter the
    local search, the rest what estimates all options, which is not bounded."""
    reserved_share: Annotated[float, Field(ge=0, lt=1), MAY_CHANGE] = 0.15
    """Share of a GPU's memory that no table may use: for activations of the dense part, workspace
    and fragmentation. Of a host's memory nothing is reserved."""
    proposers: Annotated[tuple[ProposerName, ...], Field(min_length=1), MAY_CHANGE] = (
        "grid_search",
        "greedy",
        "greedy_sum",
        "uniform",
    )
    """Searches of which the best plan is taken. grid_search: all combinations, if they are at most
    10,000; greedy: each table begins with the option of the fastest slowest shard, and the one that
    takes most memory goes on to its next; greedy_sum: the same by the sum over shards; uniform: one
    sharding type for all; dynamic_programming: the smallest sum of times under a bound of memory,
    on CUDA."""

    def unread_beside_plan(self) -> list[str]:
        """Keys of the search for a plan that have other values than their defaults."""
        plain = type(self)()
        keys = ("search", "search_seconds", "proposers", "small_table_rows")
        return [key for key in keys if getattr(self, key) != getattr(plain, key)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        decided = {"strategy": self.strategy != "auto", "tables": bool(self.tables)}
        if self.plan is not None and any(decided.values()):
            raise ConfigConflicts(
                [
                    (key, "sharding.plan stands alone, and leaves nothing for this to decide")
                    for key, is_set in decided.items()
                    if is_set
                ]
            )
        return self

    def group_mistakes(self, world_size: int) -> list[str]:
        """Why so many ranks cannot be groups of sharding_group_size; nothing if they can."""
        size = self.sharding_group_size
        if size is None or world_size % size == 0:
            return []
        divisors = [str(n) for n in range(1, world_size + 1) if world_size % n == 0]
        return [
            f"sharding.sharding_group_size = {size}: expected a divisor of the number of ranks "
            f"{world_size}: {', '.join(divisors)}"
        ]
