"""One store in place of the segments that appended days have left."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from cdp_torchrec.data.days import (
    MergedStore,
    Segment,
    load_days,
    merged_folder,
    save_record,
    segments,
    superseded,
)
from cdp_torchrec.data.history.segments import open_segments, stores_of
from cdp_torchrec.data.history.store import BehaviourSource
from cdp_torchrec.data.manifest import write_manifest
from cdp_torchrec.data.prepare.history_files import DTYPES, NpyWriter, attribute_writer
from cdp_torchrec.data.prepare.workplace import changing
from cdp_torchrec.data.schema import USER_ENTITY, HistorySchema, load_schema
from cdp_torchrec.progress import ProgressBar
from cdp_torchrec.whole_file import whole_directory

_ROWS = 1 << 20
"""Behaviours that are written at once, if no history is longer."""
_ALWAYS = np.iinfo(np.int64).max


def compact(dataset: Path) -> int:
    """Merge all segments of the store into one, and remove them.

    The merged store appears by one rename; from then on nobody reads the segments. It is what a
    preparation of the whole log at once would have written with these vocabularies.

    Args:
        dataset: dataset directory.

    Returns:
        How many segments there were.

    Raises:
        DatasetError: there is no dataset, another process adds to it, or the store is damaged.
        PreparationError: the store cannot be written; the segments stay.
    """
    base = load_schema(dataset)
    with changing(dataset):
        days = load_days(dataset, base)
        found = segments(dataset, days)
        if len(found) > 1:
            output = merged_folder(dataset, days[-1].name)
            with whole_directory(output) as partial:
                size = _merge(found, base.history, partial / "history")
                save_record(partial, MergedStore(through=days[-1].name, num_behaviours=size))
                write_manifest(partial)
        for folder in superseded(dataset):
            shutil.rmtree(folder, ignore_errors=True)
    return len(found)


def _merge(found: list[Segment], history: HistorySchema, output: Path) -> int:
    """Write the store; its behaviours."""
    store = open_segments(found, history, check=True)
    num_ids = found[-1].entities
    offsets = np.zeros(num_ids[USER_ENTITY].num_ids + 2, dtype=np.int64)
    for start in range(0, len(offsets) - 1, _ROWS):
        users = np.arange(start, min(start + _ROWS, len(offsets) - 1))
        _, slices = store.recent(users, np.full(len(users), _ALWAYS))
        offsets[1 + users] = slices.lengths
    offsets = np.cumsum(offsets)
    size = int(offsets[-1])
    columns = [name for name in DTYPES if name in ("item", "timestamp", *history.entities)]
    by_category = [name for name in columns if name != "category"]
    in_time = list(columns)
    if all(of_segment.by_time.cluster is not None for of_segment in stores_of(store)):
        in_time.append("cluster")  # a dataset from before there were clusters goes on without
    with ExitStack() as stack, ProgressBar("compact", total=size, unit="behaviours") as bar:
        output.mkdir()
        np.save(output / "user_offsets.npy", offsets)

        def writers(folder: str, names: list[str]) -> dict[str, NpyWriter]:
            (output / folder).mkdir()
            return {
                name: stack.enter_context(
                    NpyWriter(output / folder / f"{name}.npy", DTYPES.get(name, np.int32), size)
                )
                for name in names
            }

        timed = writers("by_time", in_time)
        gated = writers("by_category", by_category) if history.category_entity else {}
        for folder, files in (("by_time", timed), ("by_category", gated)):
            for a in history.attributes if files else ():
                writer = attribute_writer(output / folder, a, size)
                files[a.file] = stack.enter_context(writer)
        index = stack.enter_context(_CategoryIndex(output / "by_category")) if gated else None
        categories = num_ids[history.category_entity or USER_ENTITY].num_ids + 1
        for users in _runs(offsets):
            rows = _read(store, users, in_time)
            for name, writer in timed.items():
                writer.append(rows[name])
            if index is not None:
                owner = np.repeat(users, np.diff(offsets[users[0] : users[-1] + 2]))
                key = owner * categories + rows["category"]
                order = np.argsort(key, kind="stable")  # in the order of time where they agree
                for name, writer in gated.items():
                    writer.append(rows[name][order])
                index.append(*np.unique(key, return_counts=True))
            bar.advance(len(rows["item"]))
    return size


class _CategoryIndex:
    """keys.npy and offsets.npy of the order by category, whose length is known at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = [(folder / f".{name}").open("wb") for name in ("keys", "counts")]
        self._size = 0

    def append(self, keys: np.ndarray, counts: np.ndarray) -> None:
        for file, values in zip(self._files, (keys, counts), strict=True):
            file.write(np.ascontiguousarray(values, dtype=np.int64).data)
        self._size += len(keys)

    def __enter__(self) -> "_CategoryIndex":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()
        if kind is not None:
            return
        with (
            NpyWriter(self._folder / "keys.npy", np.int64, self._size) as keys,
            NpyWriter(self._folder / "offsets.npy", np.int64, self._size + 1) as offsets,
        ):
            end = np.zeros(1, dtype=np.int64)
            offsets.append(end)
            for start in range(0, self._size, _ROWS):
                found, counts = (
                    np.fromfile(file.name, np.int64, count=_ROWS, offset=8 * start)
                    for file in self._files
                )
                keys.append(found)
                ends = end + np.cumsum(counts)
                offsets.append(ends)
                end = ends[-1:]
        for file in self._files:
            Path(file.name).unlink()


def _runs(offsets: np.ndarray) -> Iterator[np.ndarray]:
    """Users one after the other, some at a time."""
    start = 0
    while start < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[start] + _ROWS, side="right")) - 1
        stop = min(max(start + 1, stop), len(offsets) - 1)
        yield np.arange(start, stop)
        start = stop


def _read(store: BehaviourSource, users: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    behaviours, slices = store.recent(users, np.full(len(users), _ALWAYS))
    rows = slices.rows()
    attributes = {f"attribute_{n}": values[rows] for n, values in behaviours.attributes.items()}
    return {name: getattr(behaviours, name)[rows] for name in names} | attributes
