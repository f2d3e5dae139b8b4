"""One global order of impressions, the same for every number of ranks."""

import pickle
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.request_files import RequestFiles, concatenate
from cdp_torchrec.data.requests import ImpressionOrder
from tests.data.test_request_files import identities, open_files, rewrite


@pytest.fixture(scope="module")
def blocks_of_100(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RequestFiles:
    """Training requests in row groups of 100."""
    copy = tmp_path_factory.mktemp("blocks") / "dataset"
    return open_files(rewrite(tiny_dataset, copy, lambda table: table, row_group_size=100))


def row_groups(order: ImpressionOrder, start: int, stop: int) -> np.ndarray:
    """Stretches of 100 requests that impressions of the first epoch are from."""
    return np.unique(order.take(0, start, stop).request["request_id"] // 100)


@pytest.mark.parametrize("together", [1, 250, 10_000])
def test_every_epoch_holds_every_impression_once(
    blocks_of_100: RequestFiles, together: int
) -> None:
    files = blocks_of_100
    in_files = identities(ImpressionOrder(files, seed=None).take(0, 0, files.num_impressions))
    shuffled = ImpressionOrder(files, seed=1, shuffled_together=together)
    orders = [identities(shuffled.take(e, 0, len(in_files))) for e in (0, 1)]
    for order in orders:
        assert np.array_equal(np.unique(order, axis=0), np.unique(in_files, axis=0))
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], in_files)


def test_any_cut_of_an_epoch_gives_the_same_order(blocks_of_100: RequestFiles) -> None:
    files = blocks_of_100
    for seed, together in ((None, 1), (3, 1), (3, 250), (3, 10_000)):
        make = partial(ImpressionOrder, files, seed=seed, shuffled_together=together)
        whole = make().take(2, 0, files.num_impressions)
        cuts = np.sort(np.random.default_rng(0).integers(1, files.num_impressions, 30))
        cuts = np.unique(np.concatenate([[0], cuts, [files.num_impressions]]))
        fresh = make()
        parts = [fresh.take(2, int(a), int(b)) for a, b in pairwise(cuts)]
        joined = concatenate(parts)
        assert np.array_equal(identities(joined), identities(whole))
        for name, column in whole.candidate.items():
            assert np.array_equal(joined.candidate[name], column), name
        assert len(joined.request_index) == files.num_impressions


def test_request_columns_follow_their_impressions(tiny_dataset: Path) -> None:
    files = open_files(tiny_dataset)
    table = pq.read_table(tiny_dataset / "train")
    by_id = {row["request_id"]: row for row in table.to_pylist()}
    taken = ImpressionOrder(files, seed=5).take(0, 1000, 1400)
    for place, request in enumerate(taken.request_index[:400]):
        row = by_id[int(taken.request["request_id"][request])]
        assert taken.request["user_id"][request] == row["user_id"]
        tokens = taken.bags["query_tokens"]
        own = tokens.values[tokens.offsets[request] : tokens.offsets[request + 1]]
        assert list(own) == row["query_tokens"]
        assert taken.candidate["item_id"][place] in row["item_id"]


def test_readers_travel_to_worker_processes(tiny_dataset: Path) -> None:
    order = ImpressionOrder(open_files(tiny_dataset), seed=1)
    before = identities(order.take(0, 5, 50))
    copy = pickle.loads(pickle.dumps(order))
    assert np.array_equal(identities(copy.take(0, 5, 50)), before)


def test_a_window_mixes_row_groups_and_is_no_larger_than_it_must_be(
    blocks_of_100: RequestFiles,
) -> None:
    make = partial(ImpressionOrder, blocks_of_100, seed=1)
    per_request = blocks_of_100.num_impressions // blocks_of_100.num_requests
    for together, num_blocks in ((1, 1), (100, 1), (101, 2), (250, 3)):
        order, size = make(shuffled_together=together), num_blocks * 100 * per_request
        assert len(row_groups(order, 0, size)) == num_blocks
        assert len(row_groups(order, 0, 50 * per_request)) == num_blocks
        assert not set(row_groups(order, 0, size)) & set(row_groups(order, size, 2 * size))
    everything = make(shuffled_together=10**6)
    assert len(row_groups(everything, 0, 200 * per_request)) == len(blocks_of_100.blocks)


def test_the_order_of_time_is_kept_without_a_seed(blocks_of_100: RequestFiles) -> None:
    order = ImpressionOrder(blocks_of_100, seed=None, shuffled_together=10_000)
    ids = order.take(0, 0, blocks_of_100.num_impressions).request["request_id"]
    assert (np.diff(ids) > 0).all()
