"""A made-up log of any size, in staging files: users, items and moments drawn at random."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.benchmark.preparation.config import DAYS, PreparationSettings
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.schema import Feature

_DAY_MS = 24 * 3600 * 1000
_START_MS = 1_735_689_600_000  # 2025
_ROWS = 1 << 20
"""Rows of a file, which are in memory at once."""
_CLICK_RATE = 0.1
_REQUESTS = 10**12
"""More than a day has: its number times this is the first id of its requests."""
SPEC = DatasetSpec(
    name="benchmark",
    source="drawn at random",
    features=(
        Feature(name="user_id", role="user", level="request", kind="id", entity="user"),
        Feature(name="item_id", role="item", level="candidate", kind="id", entity="item"),
        Feature(name="category_id", role="item", level="candidate", kind="id", entity="category"),
        Feature(name="price", role="item", level="candidate", kind="number"),
    ),
    test_from=_START_MS + (DAYS - 1) * _DAY_MS,
    category_entity="category",
)


def write_log(
    directory: Path, days: range, sizes: tuple[int, int], users: int, settings: PreparationSettings
) -> None:
    """Write `requests/` and `behaviours/` of some days; the same arguments give the same files.

    Args:
        directory: made here.
        days: numbers of the days.
        sizes: behaviours and requests, spread over the days.
        users: of the whole log.
        settings: of the ids.
    """
    rng = np.random.default_rng([*sizes, days.start])
    begin, span = _START_MS + days.start * _DAY_MS, len(days) * _DAY_MS
    for name, total in zip(("behaviours", "requests"), sizes, strict=True):
        (directory / name).mkdir(parents=True)
        step = _ROWS if name == "behaviours" else _ROWS // settings.num_candidates
        for first in range(0, total, step):
            count = min(step, total - first)
            columns = {
                "user_id": pa.array(rng.integers(users, size=count)),
                "timestamp": pa.array(begin + rng.integers(span, size=count)),
            }
            if name == "behaviours":
                item = _items(rng, count, settings)
                columns |= {
                    "item": pa.array(item),
                    "category": pa.array(item % settings.num_categories),
                }
            else:
                numbers = days.start * _REQUESTS + np.arange(first, first + count)
                columns["request_id"] = pa.array(numbers)
                columns |= _candidates(rng, count, settings)
            path = directory / name / f"part-{first // step:05d}.parquet"
            pq.write_table(pa.table(columns), path)


def _items(rng: np.random.Generator, count: int, settings: PreparationSettings) -> np.ndarray:
    """By Zipf's law: the logarithm of the rank is uniform."""
    return ((settings.num_items + 1) ** rng.random(count)).astype(np.int64) - 1


def _candidates(
    rng: np.random.Generator, count: int, settings: PreparationSettings
) -> dict[str, pa.Array]:
    size = count * settings.num_candidates
    item = _items(rng, size, settings)
    columns = {
        "item_id": item,
        "category_id": item % settings.num_categories,
        "price": rng.normal(size=size),
        "label": (rng.random(size) < _CLICK_RATE).astype(np.int64),
    }
    offsets = pa.array(np.arange(0, size + 1, settings.num_candidates), pa.int32())
    return {n: pa.ListArray.from_arrays(offsets, pa.array(v)) for n, v in columns.items()}
