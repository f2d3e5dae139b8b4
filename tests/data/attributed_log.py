"""A random log of two days whose behaviours have a dwell time, tags and a shop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.history.behaviour_attributes import BehaviourAttribute
from cdp_torchrec.data.prepare.append import append_day
from cdp_torchrec.data.prepare.staging import build_dataset
from tests.data.appended_log import SPEC_OF_DAYS, cut
from tests.data.staged_log import BEHAVIOUR_TYPES, Rows, random_log, stage

ATTRIBUTES = (
    BehaviourAttribute(name="dwell_s", kind="number"),
    BehaviourAttribute(name="tags", kind="ids", entity="tag", max_ids=3),
    BehaviourAttribute(name="shop", kind="id", entity="shop"),
)
SPEC = replace(SPEC_OF_DAYS, attributes=ATTRIBUTES)
_TYPES = pa.schema(
    [
        *BEHAVIOUR_TYPES,
        pa.field("dwell_s", pa.float64()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("shop", pa.string()),
    ]
)


def attributed_log(seed: int = 0) -> tuple[Rows, Rows]:
    """As `random_log`; tags begin with few and become more, many values are missing."""
    requests, behaviours = random_log(seed)
    rng = np.random.default_rng([seed, 1])
    for row in behaviours:
        late = row["timestamp"] // 250
        row["dwell_s"] = None if rng.random() < 0.2 else float(np.float32(rng.exponential(30)))
        row["tags"] = [f"t{tag}" for tag in rng.integers(4 + 2 * late, size=rng.integers(4))]
        row["shop"] = None if rng.random() < 0.2 else f"s{rng.integers(5)}"
    return requests, behaviours


def write_behaviours(folder: Path, rows: Rows, types: pa.Schema = _TYPES) -> None:
    """In place of those of a staging folder."""
    pq.write_table(pa.Table.from_pylist(rows, types), folder / "behaviours" / "part-0.parquet")


def stage_attributed(folder: Path, days: range, **change: Any) -> Path:
    """Staging files of some days; `change` goes into every behaviour."""
    requests, behaviours = attributed_log()
    rows = [[row for day in days for row in cut(found, day)] for found in (requests, behaviours)]
    stage(folder, rows[0], [])
    write_behaviours(folder, [row | change for row in rows[1]])
    return folder


def fill_attributed(folder: Path) -> None:
    """A dataset of one day with an appended one, and one of all at once."""
    build_dataset(stage_attributed(folder / "base", range(1)), folder / "grown", SPEC)
    append_day(folder / "grown", stage_attributed(folder / "day", range(1, 2)))
    build_dataset(stage_attributed(folder / "all", range(2)), folder / "whole", SPEC)
