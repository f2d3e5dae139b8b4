"""Clusters are of like behaviours, grow with the log, and know nothing of what comes later."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdp_torchrec.data.assemble import BatchAssembler
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.history.behaviour_clusters import (
    LARGEST_CLUSTER,
    alike_columns,
    assign_clusters,
    clusters_before,
)
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.history.store import Behaviours, HistoryStore, Slices
from cdp_torchrec.data.model_inputs import InputAssembler
from cdp_torchrec.data.prepare import history_files
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.schema import DatasetError

CLUSTERED = HistoryLookup(recent=True, clustered=True)


def drawn(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    columns = {name: random.integers(1, 4, count) for name in ("category", "action")}
    user = np.sort(random.choice([2, 3, 7], count))
    return {"user": user, "item": random.integers(1, 9, count)} | columns


def naive_clusters(past: list[tuple[Any, ...]]) -> list[list[int]]:
    """Places of the members of one user's clusters; a behaviour is what members must agree in."""
    clusters: list[list[int]] = []
    open_cluster: dict[tuple[Any, ...], list[int]] = {}
    for place, alike in enumerate(past):
        members = open_cluster.get(alike)
        if members is None or len(members) == LARGEST_CLUSTER:
            members = open_cluster[alike] = []
            clusters.append(members)
        members.append(place)
    return clusters


def test_a_behaviour_joins_the_open_cluster_of_its_action_and_category():
    log = drawn(1500)
    found = assign_clusters(log["user"], [log["category"], log["action"]])
    for user in (2, 3, 7):
        own = log["user"] == user
        alike = list(zip(log["category"][own], log["action"][own], strict=True))
        expected = np.zeros(own.sum(), dtype=int)
        for members in naive_clusters(alike):
            expected[members] = members[0]
        assert found[own].tolist() == expected.tolist()
    _, sizes = np.unique(log["user"] * 10_000 + found, return_counts=True)
    assert sizes.max() == LARGEST_CLUSTER


def test_later_behaviours_leave_all_clusters_as_they_are():
    """What makes them incremental: fails for k-means over the whole history."""
    log = drawn(300)
    log["user"][:] = 4
    whole = assign_clusters(log["user"], [log["category"], log["action"]])
    for count in (0, 1, 57, 299):
        part = [log[name][:count] for name in ("category", "action")]
        assert assign_clusters(log["user"][:count], part).tolist() == whole[:count].tolist()


def test_the_preparation_writes_those_of_all_users_however_many_at_once(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    history = tiny_dataset / "history"
    written = np.load(history / "by_time" / "cluster.npy")
    offsets = np.load(history / "user_offsets.npy")
    shutil.copytree(history / "by_time", tmp_path / "by_time")
    monkeypatch.setattr(history_files, "_ROWS_PER_CHUNK", 50)
    history_files._write_clusters(tmp_path / "by_time", offsets)
    assert (np.load(tmp_path / "by_time" / "cluster.npy") == written).all()
    alike = [np.load(history / "by_time" / f"{name}.npy") for name in ("category", "action")]
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    assert (assign_clusters(user, alike) == written).all()
    assert written.dtype == np.int32 and (np.diff(written) < 0).any()


def test_items_are_alike_where_the_log_has_no_category():
    log = drawn(5)
    assert alike_columns(log["item"], None, None) == [log["item"]]
    columns = alike_columns(log["item"], log["category"], log["action"])
    assert columns[0] is log["category"] and columns[1] is log["action"]


def test_a_request_reads_the_clusters_of_the_past_alone(tiny_dataset: Path):
    """Sizes, mean ages, and the most frequent item of each, against a scan of the log."""
    reader = DatasetReader(DataConfig(dir=tiny_dataset))
    impressions = reader.impressions("test").take(0, 0, 64)
    layout = reader.layout(CLUSTERED, history_counts=False)
    longest = 6
    assembler = BatchAssembler(
        InputAssembler(layout, reader.store, batch_size=64, max_history_length=longest, seed=0)
    )
    index = assembler.assemble(impressions, epoch=None).recent
    assert index is not None and index.size is not None
    store = reader.store
    assert isinstance(store, HistoryStore)
    log, larger = store.by_time, 0
    assert log.category is not None and log.action is not None
    for place, request in enumerate(impressions.request_index):
        before = impressions.request["timestamp"][request]
        start, stop = store._user_offsets[impressions.request["user_id"][request] + [0, 1]]
        rows = [r for r in range(start, stop) if log.timestamp[r] < before]
        alike = [(log.category[r], log.action[r]) for r in rows]
        clusters = sorted(naive_clusters(alike), key=lambda members: members[-1])[-longest:]
        own = index.owner == index.sequence[place]
        assert index.size[own].tolist() == [len(members) for members in clusters]
        ages = [np.mean([before - log.timestamp[rows[m]] for m in c]) / 1000 for c in clusters]
        assert index.age[own].tolist() == pytest.approx(ages)
        for members, item in zip(clusters, index.item_id[own].tolist(), strict=True):
            items = [int(log.item[rows[m]]) for m in members]
            most = max(Counter(items).values())
            assert item == [i for i in items if items.count(i) == most][-1]
            larger += len(members) > 2
    assert larger > 20


def test_behaviours_from_the_moment_of_the_request_on_change_nothing():
    log = drawn(200)
    time = np.sort(np.random.default_rng(1).integers(0, 1000, 200))
    half, before = 100, np.array([int(time[100])])

    def read(count: int) -> tuple[list[float], ...]:
        kept = {name: column[:count] for name, column in log.items()}
        cluster = assign_clusters(np.full(count, 1), [kept["category"], kept["action"]])
        store = Behaviours(kept["item"], time[:count], kept["action"], kept["category"], cluster)
        past = store.before(Slices(np.array([0]), np.array([count])), before)
        found = clusters_before(store, past, before, at_most=1000)
        return tuple(x.tolist() for x in (found.row, found.size, found.age_ms, found.lengths))

    assert read(200) == read(150) == read(half)


def test_a_dataset_without_clusters_says_how_to_get_them():
    nothing = np.zeros(1, dtype=np.int64)
    store = Behaviours(nothing, nothing, None, None)
    with pytest.raises(DatasetError, match=r"cluster\.npy is missing.*`cdp_torchrec prepare_data`"):
        clusters_before(store, Slices(nothing, nothing + 1), nothing + 1, at_most=1)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_cluster_that_begins_after_its_member_is_damage(wrong: int):
    codes = np.ones(3, dtype=np.int64)
    cluster = np.array([0, 0, wrong])
    store = Behaviours(codes, np.arange(3), None, None, cluster)
    slices = Slices(np.array([0]), np.array([3]))
    with pytest.raises(DatasetError, match=f"the cluster of behaviour 2 is {wrong}"):
        clusters_before(store, slices, np.array([9]), at_most=1)
