"""A log whose users have histories of one length, in both layouts."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.benchmark.data.config import DataSettings
from cdp_torchrec.data.prepare.staging import DatasetSpec, build_dataset
from cdp_torchrec.data.schema import Feature
from cdp_torchrec.timer import Timer

_START_MS = 1_735_689_600_000  # 2025
_SPAN_MS = 60 * 24 * 3600 * 1000  # 60 days of behaviours
_STEP_MS = 1000
_CLICK_RATE = 0.1
_FEATURES = (
    Feature(name="user_id", role="user", level="request", kind="id", entity="user"),
    Feature(name="item_id", role="item", level="candidate", kind="id", entity="item"),
    Feature(name="category_id", role="item", level="candidate", kind="id", entity="category"),
    Feature(name="price", role="item", level="candidate", kind="number"),
)


@dataclass(frozen=True)
class Preparation:
    """What making a dataset took."""

    rows: int
    """Behaviours and requests."""
    seconds: float
    """On the wall."""


def make_dataset(directory: Path, length: int, settings: DataSettings) -> Preparation:
    """Write `directory/dataset`, and how long the preparation took.

    Args:
        directory: where staging files and dataset go.
        length: behaviours of each user, all before the first request.
        settings: size of the log.
    """
    rng = np.random.default_rng(length)
    staging = directory / "staging"
    behaviours = _behaviours(rng, length, settings)
    requests, test_from = _requests(rng, settings)
    for name, table in (("behaviours", behaviours), ("requests", requests)):
        (staging / name).mkdir(parents=True)
        pq.write_table(table, staging / name / "part-0.parquet")
    spec = DatasetSpec(
        name="benchmark",
        source=f"histories of {length} behaviours, drawn at random",
        features=_FEATURES,
        test_from=test_from,
        category_entity="category",
    )
    with contextlib.redirect_stdout(io.StringIO()):
        _, ms = Timer().measure(lambda: build_dataset(staging, directory / "dataset", spec))
    return Preparation(len(behaviours) + len(requests), 1e-3 * ms)


def _behaviours(rng: np.random.Generator, length: int, settings: DataSettings) -> pa.Table:
    users = settings.num_users
    item = rng.integers(settings.num_items, size=users * length)
    moment = np.sort(rng.integers(_SPAN_MS, size=(users, length))).ravel()
    return pa.table(
        {
            "user_id": np.repeat(np.arange(users), length),
            "item": item,
            "category": item % settings.num_categories,
            "timestamp": _START_MS + moment,
        }
    )


def _requests(rng: np.random.Generator, settings: DataSettings) -> tuple[pa.Table, int]:
    """The requests, and the moment at which the test split begins."""
    users, each, candidates = (
        settings.num_users,
        settings.requests_per_user,
        settings.num_candidates,
    )
    size = users * each
    category = rng.integers(settings.num_categories, size=(size, 1))
    most = max(settings.num_items // settings.num_categories, 1)
    item = category + settings.num_categories * rng.integers(most, size=(size, candidates))
    label = (rng.random((size, candidates)) < _CLICK_RATE).astype(np.int64)
    moment = _START_MS + _SPAN_MS + _STEP_MS * np.arange(size)
    columns = {
        "item_id": item,
        "category_id": np.broadcast_to(category, item.shape),
        "price": rng.normal(size=item.shape),
        "label": label,
    }
    table = pa.table(
        {
            "request_id": np.arange(size),
            "user_id": rng.permutation(np.tile(np.arange(users), each)),
            "timestamp": moment,
            **{name: pa.array(values.tolist()) for name, values in columns.items()},
        }
    )
    return table, int(moment[-users])
