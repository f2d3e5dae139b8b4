"""What a plan file holds, as JSON that people read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from cdp_torchrec.config import Config, ConfigError
from cdp_torchrec.distributed.plans.config import KernelName, TypeName

FORMAT_VERSION = 1
_LINE_LENGTH = 100
_MOST_LINES = 20


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

    load_factor: Annotated[float, Field(gt=0, lt=1)] | None = None
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

    def as_json(self) -> str:
        """The text of the file."""
        return _pretty(self.model_dump(mode="json", exclude_none=True)) + "\n"


def parse(path: Path) -> PlanFile:
    """The content of a plan file.

    Raises:
        ConfigError: it cannot be read, or is no plan of this format; names every mistake.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise plan_error(path, "cannot be read", [str(error.strerror)]) from error
    except ValueError as error:
        raise plan_error(path, "cannot be read", [f"no JSON: {error}"]) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        found = "none" if version is None else repr(version)
        raise plan_error(
            path,
            "cannot be read",
            [f"format_version: found {found}, this release reads {FORMAT_VERSION}"],
        )
    try:
        return PlanFile.model_validate_json(json.dumps(content))
    except ValidationError as error:
        wrong = []
        for mistake in error.errors():
            key = ".".join(str(part) for part in mistake["loc"])
            if mistake["type"] == "missing":
                wrong.append(f"{key}: required key is missing")
            else:
                wrong.append(f"{key} = {mistake['input']!r}: {mistake['msg']}")
        raise plan_error(path, "cannot be read", wrong) from error


def plan_error(path: Path, what: str, problems: Sequence[str]) -> ConfigError:
    """What is wrong with a plan file.

    Args:
        path: of the file.
        what: in general, behind its name.
        problems: one by one, of which the first are shown.
    """
    more = len(problems) - _MOST_LINES
    lines = [*problems[:_MOST_LINES], *([f"... and {more} more"] if more > 0 else [])]
    return ConfigError("\n  ".join([f"sharding.plan = '{path}' {what}:", *lines]))


def _pretty(value: Any, indent: int = 0) -> str:
    """JSON with a shard on each line, instead of a number on each line."""
    line = json.dumps(value)
    if indent + len(line) < _LINE_LENGTH or not isinstance(value, dict | list):
        return line
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {_pretty(part, indent + 2)}" for key, part in value.items()]
    else:
        parts = [_pretty(part, indent + 2) for part in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    body = ",\n".join(inner + part for part in parts)
    return f"{opening}\n{body}\n{' ' * indent}{closing}"
