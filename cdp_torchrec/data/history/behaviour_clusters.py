"""Clusters of a user's behaviours, so that a history of a life fits a sequence (TWIN-V2).

The preparation says of each behaviour in which cluster it is; a request reads the clusters of what
happened before it. TWIN-V2 clusters item embeddings by recursive k-means within groups of like
engagement. Ours: a preparation has no embeddings, so behaviours are alike if their action type
(the engagement) and category agree, or their items where the log has no category.

A behaviour's cluster depends on that user's earlier behaviours alone, so that what comes later
changes nothing, clusters grow as the log does, and those of any moment are the members before it.
"""

# L behaviours, S requests, C clusters

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cdp_torchrec.data.column import Column
from cdp_torchrec.data.history.store import Behaviours, Slices
from cdp_torchrec.data.schema import DatasetError

ColumnT = TypeVar("ColumnT", bound=Column)

LARGEST_CLUSTER = 20
"""Members of a full cluster; the next behaviour begins another. The paper caps sizes, too."""


@dataclass(frozen=True)
class EarlierClusters:
    """What came before some behaviours that are added to histories, one value for each, [L]."""

    length: np.ndarray
    """Behaviours of the user."""
    alike: np.ndarray
    """Those of them that may be in one cluster with it."""
    last: np.ndarray
    """Cluster of the last of these; any number where there is none."""


def assign_clusters(
    user: np.ndarray, alike: Sequence[np.ndarray], earlier: EarlierClusters | None = None
) -> np.ndarray:
    """Cluster of each behaviour, named by the place of its first one in the history, int32 [L].

    Args:
        user: who behaved, rising, [L]; each user's behaviours are in the order of time.
        alike: codes that members of a cluster share, [L] each.
        earlier: what the histories held before; None: nothing.
    """
    count = len(user)
    order = np.lexsort((*alike, user))  # stable: in the order of time where all agree
    begins = np.ones(count, dtype=bool)
    begins[1:] = user[order][1:] != user[order][:-1]
    for codes in alike:
        begins[1:] |= codes[order][1:] != codes[order][:-1]
    place = np.arange(count)
    rank = place - np.maximum.accumulate(np.where(begins, place, 0))
    before = 0 if earlier is None else earlier.alike[order]
    members = (rank + before) % LARGEST_CLUSTER  # of its cluster that come before it
    first = np.empty(count, dtype=np.int64)
    first[order] = order[place - np.minimum(members, rank)]
    _, starts = np.unique(user, return_index=True)
    name = first - np.repeat(starts, np.diff(np.append(starts, count)))
    if earlier is not None:
        begun = np.empty(count, dtype=bool)
        begun[order] = members > rank
        name = np.where(begun, earlier.last, name + earlier.length)
    return name.astype(np.int32)


def alike_columns(item: ColumnT, category: ColumnT | None, action: ColumnT | None) -> list[ColumnT]:
    """What members of a cluster share, of the columns that the log has."""
    shared = item if category is None else category
    return [shared] if action is None else [shared, action]


@dataclass(frozen=True)
class Clusters:
    """Clusters of each request's behaviours, the one with the most recent member last."""

    row: np.ndarray
    """The member that stands for the cluster, a row of the behaviours, int64 [C]: the last one of
    the item that most members are of, whose one-hot vector is the nearest to their mean."""
    size: np.ndarray
    """Members, int64 [C]."""
    age_ms: np.ndarray
    """Mean over the members, float64 [C]."""
    lengths: np.ndarray
    """Clusters of each request, int64 [S]."""


def clusters_before(
    behaviours: Behaviours, slices: Slices, before: np.ndarray, *, at_most: int
) -> Clusters:
    """Clusters of what happened before each request.

    Args:
        behaviours: in the order of time.
        slices: those before each request.
        before: time of each request in milliseconds, int64 [S].
        at_most: clusters of a request, those with the most recent members.

    Raises:
        DatasetError: the dataset has no clusters, or they are damaged.
    """
    if behaviours.cluster is None:
        raise DatasetError(
            "history/by_time/cluster.npy is missing: the dataset was made before there were "
            "clusters of behaviours, which this model reads. Prepare it again with "
            "`cdp_torchrec prepare_data`"
        )
    rows, lengths = slices.rows(), slices.lengths
    owner = np.repeat(np.arange(len(lengths)), lengths)
    name = np.asarray(behaviours.cluster[rows]).astype(np.int64)
    wrong = (name < 0) | (name > rows - np.repeat(slices.start, lengths))
    if wrong.any():
        raise DatasetError(
            f"history/by_time/cluster.npy: the cluster of behaviour {rows[wrong][0]} is "
            f"{name[wrong][0]}, which begins after it"
        )
    _, cluster = np.unique(owner * (name.max(initial=0) + 1) + name, return_inverse=True)
    size = np.bincount(cluster)
    age = np.repeat(before, lengths) - np.asarray(behaviours.timestamp[rows])
    # Clusters by their last members; those that are too old for the sequence come first.
    last = np.zeros(len(size), dtype=np.int64)
    np.maximum.at(last, cluster, np.arange(len(rows)))
    order = np.argsort(last)
    found = np.bincount(owner[last], minlength=len(lengths))
    kept = Slices(np.cumsum(found) - found, np.cumsum(found)).last(at_most)
    order = order[kept.rows()]
    return Clusters(
        row=rows[_most_frequent(cluster, np.asarray(behaviours.item[rows]))[order]],
        size=size[order],
        age_ms=(np.bincount(cluster, weights=age) / size)[order],
        lengths=kept.lengths,
    )


def _most_frequent(cluster: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Place of the last member with the most frequent item of each cluster, the last such, [C]."""
    pair = cluster * (np.int64(item.max(initial=0)) + 1) + item
    _, of_pair, count = np.unique(pair, return_inverse=True, return_counts=True)
    order = np.lexsort((np.arange(len(item)), count[of_pair], cluster))
    ends = np.append(np.flatnonzero(np.diff(cluster[order])), len(order) - 1)
    return order[ends] if len(order) else order
