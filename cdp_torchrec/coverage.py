"""How much of the test split a model can know: histories, the category gate, ids with a row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist

from cdp_torchrec.data.dataset import Dataset
from cdp_torchrec.data.history.store import BehaviourSource
from cdp_torchrec.data.layout import FeatureLayout
from cdp_torchrec.data.request_files import Impressions
from cdp_torchrec.data.requests import ImpressionOrder
from cdp_torchrec.data.tables.embedding_table import Table
from cdp_torchrec.metrics.ranks import Ranks

CHUNK = 65536
"""Impressions that are read at once."""


@dataclass(frozen=True)
class Coverage:
    """Shares of the impressions of the test split."""

    with_history: float
    """Whose user has a behaviour before the request."""
    with_gated_history: float
    """Whose user has one in the category of the candidate, too."""
    has_gate: bool
    """Whether the log has categories at all."""
    own_rows: Mapping[str, float]
    """By feature: with an id that has an embedding row of its own."""


def own_chunks(order: ImpressionOrder) -> Iterator[Impressions]:
    """This rank's share of all impressions, in chunks that are the same for any number of ranks."""
    for start in range(0, order.num_impressions, CHUNK)[dist.get_rank() :: dist.get_world_size()]:
        yield order.take(0, start, min(start + CHUNK, order.num_impressions))


def measure_coverage(data: Dataset) -> Coverage:
    """Coverage of the test split, the same on every rank; collective.

    Args:
        data: a dataset, opened for a model.

    Raises:
        DatasetError: the dataset is damaged.
    """
    reader, layout = data.reader, data.layout
    features = [f for f in layout.features if not f.is_history]
    counts = np.zeros(3 + len(features))
    for impressions in own_chunks(reader.impressions("test")):
        gated = _gated_lengths(impressions, reader.store, layout)
        history = impressions.request["history_length"][impressions.request_index]
        rows = [_with_own_row(impressions, f.key, layout.tables[f.table]) for f in features]
        counts += np.array([len(gated), *(int(x.sum()) for x in (history > 0, gated > 0, *rows))])
    summed = Ranks().sum(counts)
    shares = (summed[1:] / summed[0]).tolist()
    return Coverage(
        with_history=shares[0],
        with_gated_history=shares[1],
        has_gate=layout.category_key is not None,
        own_rows={f.key: share for f, share in zip(features, shares[2:], strict=True)},
    )


def _gated_lengths(
    impressions: Impressions, store: BehaviourSource, layout: FeatureLayout
) -> np.ndarray:
    index = impressions.request_index
    category = np.zeros(len(index), dtype=np.int64)
    if layout.category_key is not None:
        category = impressions.candidate[layout.category_key].astype(np.int64)
    user, before = (impressions.request[name][index] for name in ("user_id", "timestamp"))
    _, slices = store.gated(user, category, before)
    return slices.lengths


def _with_own_row(impressions: Impressions, key: str, table: Table) -> np.ndarray:
    """Whether the id of each impression, or any id of its bag, has a row of its own, [B]."""
    if key in impressions.candidate:
        return table.has_own_row(impressions.candidate[key])
    if key in impressions.request:
        return table.has_own_row(impressions.request[key])[impressions.request_index]
    bag = impressions.bags[key]
    bag_of = np.repeat(np.arange(len(bag.offsets) - 1), bag.lengths)
    found = np.bincount(bag_of[table.has_own_row(bag.values)], minlength=len(bag.offsets) - 1) > 0
    return found[impressions.request_index]
