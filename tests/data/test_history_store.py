"""The history store answers with exactly the behaviours strictly before the request."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cdp_torchrec.data.history.store as history_store
from cdp_torchrec.benchmark.data.counted import CountedColumn, Tally
from cdp_torchrec.data.history.store import HistoryStore, Slices
from cdp_torchrec.data.schema import DatasetError, HistorySchema

NUM_USERS, NUM_CATEGORIES = 7, 4


def write_store(directory: Path, log: np.ndarray) -> HistorySchema:
    """Store of rows (user, category, timestamp, item), in any order."""
    by_time = log[np.lexsort((log[:, 2], log[:, 0]))]
    by_category = log[np.lexsort((log[:, 2], log[:, 1], log[:, 0]))]
    for name, rows in (("by_time", by_time), ("by_category", by_category)):
        (directory / name).mkdir(parents=True)
        np.save(directory / name / "item.npy", rows[:, 3].astype(np.int32))
        np.save(directory / name / "timestamp.npy", rows[:, 2])
    np.save(directory / "by_time" / "category.npy", by_time[:, 1].astype(np.int32))
    counts = np.bincount(log[:, 0], minlength=NUM_USERS + 1)
    np.save(directory / "user_offsets.npy", np.concatenate([[0], np.cumsum(counts)]))
    keys, sizes = np.unique(
        by_category[:, 0] * (NUM_CATEGORIES + 1) + by_category[:, 1], return_counts=True
    )
    np.save(directory / "by_category" / "keys.npy", keys)
    np.save(directory / "by_category" / "offsets.npy", np.concatenate([[0], np.cumsum(sizes)]))
    return HistorySchema(category_entity="category", num_behaviours=len(log), num_users=NUM_USERS)


@pytest.fixture
def log() -> np.ndarray:
    rng = np.random.default_rng(0)
    columns = (
        rng.integers(1, NUM_USERS + 1, 400),
        rng.integers(0, NUM_CATEGORIES + 1, 400),
        rng.permutation(400) + 1000,
        rng.integers(1, 50, 400),
    )
    return np.stack(columns, axis=1)


def open_store(directory: Path, schema: HistorySchema) -> HistoryStore:
    return HistoryStore(directory, schema, num_categories=NUM_CATEGORIES)


def expected(log: np.ndarray, user: int, before: int, category: int | None) -> list[int]:
    kept = [r for r in log if r[0] == user and r[2] < before]
    kept = [r for r in kept if category is None or (r[1] == category and category > 0)]
    return [int(r[3]) for r in sorted(kept, key=lambda r: r[2])]


def test_recent_equals_a_scan_of_the_log(tmp_path: Path, log: np.ndarray) -> None:
    store = open_store(tmp_path, write_store(tmp_path, log))
    rng = np.random.default_rng(1)
    user, before = rng.integers(0, NUM_USERS + 1, 200), rng.integers(990, 1410, 200)
    behaviours, slices = store.recent(user, before)
    for query in range(200):
        items = behaviours.item[slices.start[query] : slices.stop[query]]
        assert list(items) == expected(log, user[query], before[query], None)


def test_gate_equals_a_scan_of_the_full_history_in_the_target_category(
    tmp_path: Path, log: np.ndarray
) -> None:
    store = open_store(tmp_path, write_store(tmp_path, log))
    rng = np.random.default_rng(2)
    user, before = rng.integers(0, NUM_USERS + 1, 300), rng.integers(990, 1410, 300)
    category = rng.integers(0, NUM_CATEGORIES + 1, 300)
    behaviours, slices = store.gated(user, category, before)
    behaviours.check(slices, before)
    for query in range(300):
        items = behaviours.item[slices.start[query] : slices.stop[query]]
        wanted = expected(log, user[query], before[query], int(category[query]))
        assert list(items) == wanted


def test_a_category_that_the_store_does_not_know_is_not_one_of_the_next_user(
    tmp_path: Path, log: np.ndarray
) -> None:
    store = open_store(tmp_path, write_store(tmp_path, log))
    # The store of a day is asked for categories that a later day has brought.
    later = np.arange(NUM_CATEGORIES + 1, 4 * NUM_CATEGORIES)
    user, before = np.ones(len(later), np.int64), np.full(len(later), 10**9)
    _, slices = store.gated(user, later, before)
    assert not slices.lengths.any()
    _, slices = store.gated(user + 1, later - NUM_CATEGORIES - 1, before)
    assert slices.lengths.any()


def test_behaviour_at_the_time_of_the_request_is_not_history(tmp_path: Path) -> None:
    log = np.array([[1, 1, 100, 7], [1, 1, 200, 8]])
    store = open_store(tmp_path, write_store(tmp_path, log))
    user, category = np.array([1, 1, 1]), np.array([1, 1, 1])
    _, slices = store.gated(user, category, np.array([100, 200, 201]))
    assert list(slices.lengths) == [0, 1, 2]


def test_behaviours_outside_the_category_do_not_change_the_gate(
    tmp_path: Path, log: np.ndarray
) -> None:
    user, category, before = np.array([3]), np.array([2]), np.array([1300])
    answers = []
    for name, rows in (("all", log), ("category", log[log[:, 1] == 2])):
        store = open_store(tmp_path / name, write_store(tmp_path / name, rows))
        behaviours, slices = store.gated(user, category, before)
        answers.append(list(behaviours.item[slices.rows()]))
    assert answers[0] == answers[1] != []


def test_without_categories_the_gate_is_the_whole_history(tmp_path: Path, log: np.ndarray) -> None:
    schema = write_store(tmp_path, log).model_copy(update={"category_entity": None})
    store = open_store(tmp_path, schema)
    user, before = np.array([1, 2]), np.array([1200, 1200])
    _, gated = store.gated(user, np.array([0, 0]), before)
    _, recent = store.recent(user, before)
    assert list(gated.lengths) == list(recent.lengths)


def test_segments_partition_the_most_recent_behaviours() -> None:
    whole = Slices(np.array([10, 50, 70]), np.array([30, 52, 70])).last(15)
    segments = [whole.last(1), whole.last(4, skip=1), whole.last(15, skip=5)]
    assert list(whole.lengths) == [15, 2, 0]
    assert [list(s.lengths) for s in segments] == [[1, 1, 0], [4, 1, 0], [10, 0, 0]]
    rows = np.concatenate([s.rows() for s in segments])
    assert sorted(rows) == sorted(whole.rows())


def test_unsorted_history_is_an_error(tmp_path: Path, log: np.ndarray) -> None:
    schema = write_store(tmp_path, log)
    path = tmp_path / "by_category" / "timestamp.npy"
    times = np.load(path)
    offsets = np.load(tmp_path / "by_category" / "offsets.npy")
    longest = int(np.argmax(np.diff(offsets)))
    start, stop = offsets[longest], offsets[longest + 1]
    times[start:stop] = times[start:stop][::-1].copy()
    np.save(path, times)
    key = int(np.load(tmp_path / "by_category" / "keys.npy")[longest])
    user, category = np.array([key // (NUM_CATEGORIES + 1)]), np.array([key % (NUM_CATEGORIES + 1)])
    behaviours, slices = open_store(tmp_path, schema).gated(user, category, np.array([10**9]))
    with pytest.raises(DatasetError, match="must be sorted by timestamp"):
        behaviours.check(slices, np.array([10**9]))


def test_behaviour_younger_than_its_request_is_an_error(tmp_path: Path, log: np.ndarray) -> None:
    store = open_store(tmp_path, write_store(tmp_path, log))
    with pytest.raises(DatasetError, match="not older than its request"):
        store.by_time.check(Slices(np.array([0]), np.array([3])), np.array([0]))
    third = np.array([store.by_time.timestamp[2]])
    store.by_time.check(Slices(np.array([0]), np.array([3])), third + 1)
    with pytest.raises(DatasetError, match="behaviour 2 is not older than its request"):
        store.by_time.check(Slices(np.array([0]), np.array([3])), third)


def test_what_was_found_sorted_is_not_read_again_and_what_was_not_is(
    tmp_path: Path, log: np.ndarray
) -> None:
    store = open_store(tmp_path, write_store(tmp_path, log))
    tally = Tally()
    behaviours = replace(store.by_time, timestamp=CountedColumn(store.by_time.timestamp, tally))
    _, slices = store.recent(np.array([1, 2]), np.array([1300, 1300]))
    before = np.full(2, 1300)
    assert (slices.lengths > 3).all()

    def read(slices: Slices) -> int:
        start = tally.read
        behaviours.check(slices, before[: len(slices.start)])
        return (tally.read - start) // 8

    youngest = 2
    assert read(slices) == slices.lengths.sum() + youngest
    assert read(slices) == youngest
    assert read(slices.last(2)) == youngest  # the ends of what is known
    shorter = Slices(slices.start, slices.stop - 1)
    assert read(shorter) == shorter.lengths.sum() + youngest
    assert read(Slices(slices.start[:1], slices.stop[:1] - 1)) == 1
    with pytest.raises(DatasetError, match="not older than its request"):
        behaviours.check(slices, np.array([1300, 0]))


def test_what_was_not_sorted_is_an_error_every_time(tmp_path: Path, log: np.ndarray) -> None:
    store = open_store(tmp_path, write_store(tmp_path, log))
    times = np.array(store.by_time.timestamp)[::-1].copy()
    behaviours = replace(store.by_time, timestamp=times)
    _, slices = store.recent(np.array([1]), np.array([2**60]))
    for _ in range(2):
        with pytest.raises(DatasetError, match="must be sorted by timestamp"):
            behaviours.check(slices, np.array([2**60]))


def test_missing_and_truncated_files_are_named(tmp_path: Path, log: np.ndarray) -> None:
    schema = write_store(tmp_path, log)
    np.save(tmp_path / "by_time" / "item.npy", np.zeros(3, dtype=np.int32))
    with pytest.raises(DatasetError, match=r"item\.npy: 3 entries, expected 400"):
        open_store(tmp_path, schema)
    (tmp_path / "by_time" / "item.npy").unlink()
    with pytest.raises(DatasetError, match=r"item\.npy: cannot read the history store"):
        open_store(tmp_path, schema)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux says how a file is mapped")
@pytest.mark.parametrize(("memory", "is_random"), [(1 << 50, False), (1, True)])
def test_of_a_store_beyond_the_memory_only_pages_that_are_asked_for_are_read(
    tmp_path: Path,
    log: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    memory: int,
    is_random: bool,
) -> None:
    monkeypatch.setattr(history_store, "_memory", lambda: memory)
    opened = open_store(tmp_path, write_store(tmp_path, log))
    own = f"{tmp_path}/by_category/item.npy\n"  # other tests have theirs open
    _, _, mapping = Path("/proc/self/smaps").read_text().partition(own)
    flags = next(line for line in mapping.splitlines() if line.startswith("VmFlags:"))
    assert (" rr " in flags) == is_random  # read at random
    assert opened is not None


def test_store_without_behaviours_answers_empty_histories(tmp_path: Path) -> None:
    schema = write_store(tmp_path, np.zeros((0, 4), dtype=np.int64))
    store = open_store(tmp_path, schema)
    behaviours, slices = store.gated(np.array([1, 2]), np.array([1, 1]), np.array([5, 5]))
    assert list(behaviours.item[slices.rows()]) == []
