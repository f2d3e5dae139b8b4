"""Workers change nothing of a batch, stay for the whole run, and are missed when they are gone."""

import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, is_dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.dataset import Dataset, open_dataset
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.history.store import HistoryStore
from cdp_torchrec.data.loader import Share
from cdp_torchrec.data.packed import pack
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.data.workers import BatchLoader, LoaderWorkerError
from tests.distributed.spawn import start_forkserver

EVERY_FORM = HistoryLookup(pool_segments=(1, 3), part=True, whole=True, gated=True, recent=True)


def open_tiny(dataset: Path) -> Dataset:
    return open_dataset(
        DataConfig(dir=dataset),
        history=EVERY_FORM,
        history_counts=False,
        global_batch_size=64,
        share=Share(0, 1),
        seed=4,
    )


@pytest.fixture(scope="module")
def data(tiny_dataset: Path) -> Dataset:
    return open_tiny(tiny_dataset)


@pytest.fixture(scope="module")
def loader(data: Dataset) -> Iterator[BatchLoader]:
    start_forkserver()
    loader = BatchLoader(data.sources, num_workers=2)
    yield loader
    loader.close()


def content(value: Any) -> Any:
    """Everything in a batch: names, types, shapes and bytes."""
    if isinstance(value, torch.Tensor):
        assert value.is_contiguous()
        return value.dtype, value.shape, value.numpy().tobytes()
    if is_dataclass(value):
        return [(field.name, content(getattr(value, field.name))) for field in fields(value)]
    if isinstance(value, KeyedJaggedTensor):
        return sorted((name, content(inner)) for name, inner in vars(value).items())
    if isinstance(value, list | tuple):
        return [content(inner) for inner in value]
    return value


def test_a_packed_batch_is_the_batch_bit_for_bit_in_one_block_of_memory(data: Dataset) -> None:
    batch = data.train[0]
    found = pickle.loads(pickle.dumps(pack(batch))).unpack()
    assert content(found) == content(batch)
    blocks = (found.labels, found.sparse.values(), found.gated.owner, found.recent.place)
    assert len({tensor.untyped_storage().data_ptr() for tensor in blocks}) == 1


@pytest.mark.slow
def test_workers_have_ended_when_their_loader_is_closed_whoever_still_holds_a_stretch(
    data: Dataset, loader: BatchLoader
) -> None:
    others = set(active_children())
    stretch = loader.load(data.train, [0, 1, 2])
    next(stretch)
    workers = set(active_children()) - others
    assert len(workers) == 2
    loader.close()
    assert not any(worker.is_alive() for worker in workers)


def test_workers_give_the_same_batches_in_the_same_order(
    data: Dataset, loader: BatchLoader
) -> None:
    positions = data.train.positions(0, 6)
    own, others = (list(one.load(data.train, positions)) for one in (BatchLoader(), loader))
    assert [content(batch) for batch in own] == [content(batch) for batch in others]


def test_workers_stay_when_one_stretch_ends_and_another_split_begins(
    data: Dataset, loader: BatchLoader
) -> None:
    half_read = loader.load(data.train, data.train.positions(0, 9))
    next(half_read)
    before = set(active_children())
    found = list(loader.load(data.test, [1, 0]))
    assert [content(batch) for batch in found] == [content(data.test[step]) for step in (1, 0)]
    assert set(active_children()) == before


@pytest.mark.slow  # it is noticed within 5 s
def test_a_killed_worker_is_named(data: Dataset) -> None:
    others = set(active_children())
    with closing(BatchLoader(data.sources, num_workers=1)) as loader:
        batches = loader.load(data.train, data.train.positions(0, 20))
        next(batches)
        (worker,) = set(active_children()) - others
        assert worker.pid
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(LoaderWorkerError, match=f"process {worker.pid} was killed by SIGKILL"):
            list(batches)


@pytest.mark.slow
def test_a_mistake_in_the_data_reads_the_same_from_a_worker(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "damaged")
    data = open_tiny(tmp_path / "damaged")
    for part in (tmp_path / "damaged" / "train").iterdir():
        part.write_bytes(b"no parquet file")
    said = []
    for num_workers in (0, 1):
        with closing(BatchLoader(data.sources, num_workers=num_workers)) as loader:
            with pytest.raises(DatasetError) as mistake:
                next(loader.load(data.train, [0]))
            said.append(str(mistake.value))
    assert said[0] == said[1]


def test_a_history_store_is_sent_to_workers_by_its_name(data: Dataset) -> None:
    store = data.reader.store
    assert isinstance(store, HistoryStore)
    sent = pickle.dumps(store)
    assert len(sent) < 2_000 < 8 * len(store.by_time.timestamp)
    copy = pickle.loads(sent)
    assert np.array_equal(copy.by_time.item, store.by_time.item[:])
