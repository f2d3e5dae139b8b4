"""A synthetic search log with known click probabilities, as a dataset directory.

`world.py` holds what people want and how clicks arise, `simulation.py` lets them search and
browse; this file writes what a log would show of it, and the metrics of the true probabilities.
"""

# I items, Q queries, N requests of a day, K candidates

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.prepare.staging import build_dataset, preparing, staging_beside
from cdp_torchrec.data.schema import Feature, Schema
from cdp_torchrec.data.synthetic.config import SOURCE, SyntheticConfig
from cdp_torchrec.data.synthetic.simulation import (
    DAY_S,
    FIRST_MIDNIGHT_S,
    Behaviours,
    Day,
    Requests,
    simulate,
)
from cdp_torchrec.data.synthetic.world import Ints, World, build_world
from cdp_torchrec.metrics import auc, grouped_auc
from cdp_torchrec.progress import progress

_FEATURES = (
    Feature(name="user_id", role="user", level="request", kind="id", entity="user"),
    Feature(name="segment", role="user", level="request", kind="id", entity="segment"),
    Feature(name="query_id", role="query", level="request", kind="id", entity="query"),
    Feature(name="query_tokens", role="query", level="request", kind="ids", entity="token"),
    Feature(name="item_id", role="item", level="candidate", kind="id", entity="item"),
    Feature(name="category_id", role="item", level="candidate", kind="id", entity="category"),
    Feature(name="log_price", role="item", level="candidate", kind="number"),
    Feature(name="hour", role="context", level="request", kind="id", entity="hour"),
    Feature(name="weekday", role="context", level="request", kind="id", entity="weekday"),
    Feature(name="position", role="context", level="candidate", kind="id", entity="position"),
    Feature(name="client", role="scene", level="request", kind="id", entity="client"),
    Feature(name="search_source", role="scene", level="request", kind="id", entity="search_source"),
)


def write_synthetic_staging(config: SyntheticConfig, staging: Path) -> DatasetSpec:
    """Simulate a log and write it as the staging files of `prepare.staging`.

    Args:
        config: the world.
        staging: directory to fill; made if needed.

    Returns:
        What the files mean, with the metrics of the true click probabilities on the test day.

    Raises:
        ConfigError: the world is so small that the test day has no requests.
    """
    world = build_world(config)
    writer = _StagingWriter(world, staging)
    last = config.history_days + config.train_days
    bayes: dict[str, float] = {}
    for day in progress(simulate(world), "simulate", total=last + 1, unit="days"):
        writer.write(day)
        if day.number == last:
            bayes = _bayes_metrics(day.requests)
    return DatasetSpec(
        name="synthetic",
        source=SOURCE + config.model_dump_json(),
        features=_FEATURES,
        test_from=1000 * (FIRST_MIDNIGHT_S + DAY_S * last),
        category_entity="category",
        action_entity="action",
        bayes=bayes,
    )


def make_synthetic(config: SyntheticConfig, output: Path) -> Schema:
    """Simulate a log and prepare it as the dataset directory `output`.

    Args:
        config: the world.
        output: directory to make; must not exist. The staging files lie beside it meanwhile.

    Raises:
        ConfigError: the world is so small that the test day has no requests.
        DatasetError: `output` exists, or the world has no requests before the test day.
        PreparationError: no space, or no permission to write beside `output`.
    """
    with preparing(output), staging_beside(output) as staging:
        spec = write_synthetic_staging(config, staging)
        return build_dataset(staging, output, spec, log=output)


class _StagingWriter:
    """Writes the days of a world as raw parquet files."""

    def __init__(self, world: World, staging: Path) -> None:
        self._world = world
        self._requests = staging / "requests"
        self._behaviours = staging / "behaviours"
        self._requests.mkdir(parents=True, exist_ok=True)
        self._behaviours.mkdir(parents=True, exist_ok=True)
        self._num_requests = 0
        _, tokens = np.nonzero(world.query_tokens)
        ends = np.cumsum(world.query_tokens.sum(axis=1))
        self._query_tokens = pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], ends]), pa.int32()), _names("token", tokens)
        )

    def write(self, day: Day) -> None:
        """Write a file of requests, if there are any, and a file of behaviours."""
        name = f"day-{day.number:04d}.parquet"
        if len(day.requests.second):
            pq.write_table(self._request_table(day.requests), self._requests / name)
        pq.write_table(self._behaviour_table(day.behaviours), self._behaviours / name)

    def _request_table(self, requests: Requests) -> pa.Table:
        sessions, items = requests.sessions, requests.items
        count, page = items.shape
        request_id = np.arange(self._num_requests, self._num_requests + count)
        self._num_requests += count
        positions = np.tile(np.arange(1, page + 1), (count, 1))
        return pa.table(
            {
                "request_id": request_id,
                "user_id": _names("user", sessions.user),
                "timestamp": 1000 * requests.second,
                "segment": _names("segment", self._world.user_segment[sessions.user]),
                "query_id": _names("query", sessions.query),
                "query_tokens": self._query_tokens.take(pa.array(sessions.query)),
                "hour": _names("hour", sessions.hour),
                "weekday": _names("weekday", sessions.weekday),
                "client": _names("client", sessions.client),
                "search_source": _names("source", sessions.search_source),
                "item_id": _lists(_names("item", items), page),
                "category_id": _lists(_names("category", self._world.category_of(items)), page),
                "log_price": _lists(pa.array(self._world.item_log_price[items].ravel()), page),
                "position": _lists(pa.array(positions.ravel().astype(str), pa.string()), page),
                "label": _lists(pa.array(requests.label.ravel()), page),
                "click_probability": _lists(pa.array(requests.click_probability.ravel()), page),
            }
        )

    def _behaviour_table(self, behaviours: Behaviours) -> pa.Table:
        return pa.table(
            {
                "user_id": _names("user", behaviours.user),
                "item": _names("item", behaviours.item),
                "category": _names("category", self._world.category_of(behaviours.item)),
                "action": pa.array(["view", "click"]).take(pa.array(behaviours.searched)),
                "timestamp": behaviours.timestamp,
            }
        )


def _names(kind: str, numbers: Ints) -> pa.StringArray:
    """Raw ids such as "item_17", flattened."""
    values, places = np.unique(numbers, return_inverse=True)
    return pa.array([f"{kind}_{value}" for value in values], pa.string()).take(
        pa.array(places.ravel())
    )


def _lists(values: pa.Array, length: int) -> pa.ListArray:
    """Rows of equal length from flat values."""
    return pa.ListArray.from_arrays(
        pa.array(np.arange(0, len(values) + 1, length), pa.int32()), values
    )


def _bayes_metrics(requests: Requests) -> dict[str, float]:
    """What the true click probabilities themselves reach: the bound of every model.

    Raises:
        ConfigError: there are no requests.
    """
    count, page = requests.items.shape
    if not count:
        raise ConfigError(
            "data.synthetic: the test day has no requests; raise num_users or requests_per_day"
        )
    probability, label = requests.click_probability.ravel(), requests.label.ravel()
    by_user = grouped_auc(probability, label, np.repeat(requests.sessions.user, page))
    by_request = grouped_auc(probability, label, np.repeat(np.arange(count), page))
    likelihood = np.where(label == 1, probability, 1.0 - probability)
    return {
        "auc": auc(probability, label),
        "uauc": by_user.mean,
        "gauc": by_request.weighted_mean,
        "log_loss": -float(np.log(likelihood).mean()),
    }
