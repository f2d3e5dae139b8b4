"""The data benchmark at one length of history."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from cdp_torchrec.benchmark.data.config import DataSettings
from cdp_torchrec.benchmark.data.counted import CountedStore
from cdp_torchrec.benchmark.data.inline import InlineHistories, write_inline
from cdp_torchrec.benchmark.data.log import Preparation, make_dataset
from cdp_torchrec.benchmark.output import scratch_directory
from cdp_torchrec.data.assemble import BatchAssembler
from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.history.store import BehaviourSource
from cdp_torchrec.data.layout import FeatureLayout
from cdp_torchrec.data.loader import Share, TrainBatches
from cdp_torchrec.data.model_inputs import InputAssembler
from cdp_torchrec.data.packed import pack
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.workers import BatchLoader
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.timer import Timer, alternate, times

Layout = Literal["store", "inline"]
LAYOUTS: tuple[Layout, ...] = ("store", "inline")
_READ = 1 << 20


@dataclass(frozen=True)
class RowFigures:
    """One form of the history at one length."""

    row: str
    """Name of the interest module that reads it."""
    per_second: Mapping[Layout, float]
    """Impressions per second of one core."""
    speedup: float
    """Of the store over the inline layout, median over the rounds."""
    bytes_read: Mapping[Layout, float]
    """Per impression, requests and histories, of the first pass."""
    bytes_read_again: float
    """Per impression, of the second pass over the store, whose order is known."""
    bytes_made: float
    """Per impression, all tensors of a batch."""
    limit_per_second: float
    """Impressions per second of one core that only reads the store's bytes in a row from the page
    cache, and copies the tensors once."""
    workers: Mapping[int, float]
    """Impressions per second on the wall by the number of loader processes, store, shuffled."""


@dataclass(frozen=True)
class LengthFigures:
    """All of one length."""

    length: int
    num_impressions: int
    preparation: Preparation
    on_disk: Mapping[Layout, int]
    """Bytes of requests and histories of the training split."""
    rows: Sequence[RowFigures]


def measure_length(
    length: int, configs: Mapping[str, ExperimentConfig], settings: DataSettings
) -> LengthFigures:
    """Make a log, write it in both layouts, and read it.

    Args:
        length: behaviours before each request.
        configs: by name of the row; data.dir is set here.
        settings: what is measured.
    """
    with scratch_directory(settings.scratch, "benchmark-data-") as directory:
        preparation = make_dataset(directory, length, settings)
        dataset, inline = directory / "dataset", directory / "inline"
        cases = {
            name: ReadingCase(dataset, inline, length, config, settings)
            for name, config in configs.items()
        }
        some = next(iter(cases.values()))
        write_inline(dataset, some.reader.store, inline)
        stored = size_of(dataset / "train") + size_of(dataset / "history")
        return LengthFigures(
            length=length,
            num_impressions=some.num_impressions,
            preparation=preparation,
            on_disk={"store": stored, "inline": size_of(inline)},
            rows=[_measure(name, case, settings) for name, case in cases.items()],
        )


class ReadingCase:
    """One row at one length, in both layouts."""

    def __init__(
        self,
        dataset: Path,
        inline: Path,
        length: int,
        config: ExperimentConfig,
        settings: DataSettings,
    ) -> None:
        history = config.data.history.model_copy(update={"max_length": length})
        self._config = config.data.model_copy(
            update={"dir": dataset, "history": history, "synthetic": None, "vocabulary": {}}
        )
        self.reader = DatasetReader(self._config)
        self.layout: FeatureLayout = self.reader.layout(
            config.model.interest.history,
            history_counts=config.model.interaction.history_counts,
        )
        self.inline = inline
        self._batch_size = settings.batch_size
        self.bytes_of_requests = size_of(dataset / "train")
        self.num_impressions = self.reader.impressions("train").num_impressions

    def batches(self, source: BehaviourSource, owner: str = "user_id") -> Iterator[Batch]:
        """All training impressions in the order of the files, which are opened anew.

        Args:
            source: the behaviours.
            owner: column of the requests by which it knows them.
        """
        order = self.reader.impressions("train")
        assembler = BatchAssembler(
            InputAssembler(
                self.layout,
                source,
                batch_size=self._batch_size,
                max_history_length=self._config.history.max_length,
                seed=0,
                history_owner=owner,
            )
        )
        for start in range(0, order.num_impressions, self._batch_size):
            stop = min(start + self._batch_size, order.num_impressions)
            yield assembler.assemble(order.take(0, start, stop), epoch=0)

    def from_store(self) -> Iterator[Batch]:
        """Batches with histories of the store."""
        return self.batches(self.reader.store)

    def from_inline(self) -> Iterator[Batch]:
        """The same batches with histories of the copies."""
        return self.batches(InlineHistories(self.inline), "request_id")

    def shuffled(self) -> TrainBatches:
        """Batches in the order of a training."""
        assembler = self.reader.assembler(self.layout, batch_size=self._batch_size, seed=0)
        return TrainBatches(
            self.reader.impressions("train", seed=0),
            assembler,
            global_batch_size=self._batch_size,
            share=Share(0, 1),
        )


def _measure(row: str, case: ReadingCase, settings: DataSettings) -> RowFigures:
    counted = CountedStore(case.reader.store)
    sizes = [pack(batch).memory.numel() for batch in case.batches(counted)]
    once = counted.tally.read
    _pass(case.batches(counted))
    again = counted.tally.read - once
    bytes_read = {
        "store": case.bytes_of_requests + once,
        "inline": size_of(case.inline),
    }
    with tempfile.NamedTemporaryFile(dir=case.inline.parent) as file:
        for start in range(0, bytes_read["store"], _READ):
            file.write(bytes(min(_READ, bytes_read["store"] - start)))
        file.flush()
        contestants: dict[str, Callable[[], object]] = {
            "store": lambda: _pass(case.from_store()),
            "inline": lambda: _pass(case.from_inline()),
            "limit": lambda: _read_and_copy(Path(file.name), sizes),
        }
        timer = Timer(clock=time.process_time)
        found = times(
            alternate(
                {name: partial(_ms, timer, work) for name, work in contestants.items()},
                range(settings.rounds + 1),
                warm_up=1,
            )
        )
    return RowFigures(
        row=row,
        per_second={layout: _rate(case, found[layout].median) for layout in LAYOUTS},
        speedup=found["inline"].ratio_to(found["store"]),
        bytes_read={layout: bytes_read[layout] / case.num_impressions for layout in LAYOUTS},
        bytes_read_again=(case.bytes_of_requests + again) / case.num_impressions,
        bytes_made=sum(sizes) / case.num_impressions,
        limit_per_second=_rate(case, found["limit"].median),
        workers={number: _with_workers(case, number, settings) for number in settings.workers},
    )


def _with_workers(case: ReadingCase, number: int, settings: DataSettings) -> float:
    """Impressions per second on the wall, with processes that have started before."""
    source = case.shuffled()
    loader = BatchLoader([source], num_workers=number)
    positions = source.positions(0, settings.worker_batches)
    try:
        rounds = range(settings.rounds + 1)
        ms = [Timer().ms(lambda: _pass(loader.load(source, positions))) for _ in rounds]
    finally:
        loader.close()
    return float(1e3 * settings.worker_batches * settings.batch_size / np.median(ms[1:]))


def _pass(batches: Iterator[Batch]) -> None:
    for _ in batches:
        pass


def _read_and_copy(path: Path, sizes: Sequence[int]) -> None:
    """What nobody can do without: each byte read once, each byte of the batches written once."""
    buffer = bytearray(_READ)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    memory = np.zeros(max(sizes), dtype=np.uint8)
    for size in sizes:
        memory[:size].copy()  # torch's threads would wait for each other, on the CPU's time


def _ms(timer: Timer, work: Callable[[], object], _: int) -> float:
    return timer.ms(work)


def _rate(case: ReadingCase, ms: float) -> float:
    return 1e3 * case.num_impressions / max(ms, 1e-3)


def size_of(directory: Path) -> int:
    """Bytes of all files in a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
