"""What a plan file holds."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from cdp_torchrec.config import Config
from cdp_torchrec.distributed.plans.config import KernelName, TypeName

FORMAT_VERSION = 1


class ShardEntry(Config):
    """A rectangle of a table, and who holds it."""

    rank: NonNegativeInt
    """Number of the rank in the job."""
    offsets: tuple[NonNegativeInt, NonNegativeInt]
    """First row and first column."""
    sizes: tuple[NonNegativeInt, NonNegativeInt]
    """Rows and columns."""


class CacheEntry(Config):
    """On the GPU, of a table in host memory."""

    load_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the rows that it holds; without it, FBGEMM's default."""


class TableEntry(Config):
    """How one table is sharded."""

    num_embeddings: PositiveInt
    """Rows of the whole table."""
    embedding_dim: PositiveInt
    """Columns of the whole table."""
    sharding_type: TypeName
    """TorchRec's name."""
    compute_kernel: KernelName | Literal["dense"]
    """TorchRec's name; fused and dense are the same place, and exchanged on reading as the
    optimizer and the device need it."""
    cache_params: CacheEntry | None = None
    """Of the kernel fused_uvm_caching."""
    shards: tuple[ShardEntry, ...]
    """In the planner's order; empty if every rank holds the whole table."""


class PlanFile(Config):
    """A plan."""

    format_version: int
    """Of this layout."""
    world_size: PositiveInt
    """Number of ranks."""
    local_world_size: PositiveInt
    """Ranks of a node."""
    device: str
    """What the plan was made for, cpu or cuda."""
    tables: Mapping[str, TableEntry]
    """By table name."""
