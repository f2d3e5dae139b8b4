"""What is read of a dataset directory: its schema, and its parts as one model sees them."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from cdp_torchrec.data.assemble import BatchAssembler
from cdp_torchrec.data.config import TEST, TRAIN, DataConfig
from cdp_torchrec.data.days import day_folder, read_schema
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.history.segments import SegmentedHistory, open_history
from cdp_torchrec.data.history.sequence_index import Blocks
from cdp_torchrec.data.history.store import HistoryStore
from cdp_torchrec.data.layout import FeatureLayout, build_layout
from cdp_torchrec.data.manifest import check_at_open, read_manifest
from cdp_torchrec.data.model_inputs import InputAssembler
from cdp_torchrec.data.request_files import RequestFiles
from cdp_torchrec.data.requests import ImpressionOrder
from cdp_torchrec.data.schema import Schema, SplitName
from cdp_torchrec.data.soft_labels import SoftLabels, digest_of


class DatasetReader:
    """A dataset directory; each part is opened, and looked at, when it is asked for."""

    schema: Schema
    """Without the excluded features."""

    def __init__(self, config: DataConfig) -> None:
        """Read the schema.

        Args:
            config: which dataset, and how to read it; `DataConfig(dir=...)` reads all of it.

        Raises:
            ConfigError: an excluded feature is unknown or needed.
            DatasetError: there is no readable dataset.
        """
        self._config = config
        self.schema = read_schema(config)

    @cached_property
    def store(self) -> HistoryStore | SegmentedHistory:
        """The behaviours of all users, with those of the days that are read.

        Raises:
            DatasetError: the files are missing or damaged.
        """
        return open_history(self._config.dir, self.schema)

    @property
    def _folders(self) -> list[Path]:
        """Folders of the dataset and of the days that are read."""
        dataset = self._config.dir
        return [dataset, *(day_folder(dataset, day.name) for day in self.schema.days)]

    def periods(self, split: SplitName) -> tuple[str, ...]:
        """The periods of the log that are a split."""
        return self._config.train_on if split == "train" else (self._config.test_on,)

    @property
    def training_digest(self) -> str:
        """Of what a training reads, its requests and the history, in 16 hexadecimal digits.

        Two datasets may give the same ids the same codes and still be of other days. Soft labels
        are a part of it.

        Raises:
            ConfigError: there is no file with the soft labels.
            DatasetError: there is no readable manifest.
        """
        digest = self._digest(self.periods("train"), num_days=self.schema.trained_days)
        if self._config.soft_labels is None:
            return digest
        both = digest + digest_of(self._config.soft_labels)
        return hashlib.sha256(both.encode()).hexdigest()[:16]

    @property
    def test_digest(self) -> str:
        """The same of what a trained model is measured on.

        Raises:
            DatasetError: there is no readable manifest.
        """
        return self._digest(self.periods("test"), num_days=len(self.schema.days))

    def _digest(self, periods: Sequence[str], *, num_days: int) -> str:
        """Of the requests of some periods, and of the history with that of the first days."""
        base, *days = self._folders
        read = read_manifest(base).contents("history", *periods)
        for day in days[:num_days]:
            folders = ("history", "requests") if day.name in periods else ("history",)
            files = read_manifest(day).contents(*folders)
            read |= {f"{day.name}/{path}": sha256 for path, sha256 in files.items()}
        return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]

    def layout(self, history: HistoryLookup, *, history_counts: bool) -> FeatureLayout:
        """Tables and keys for a model.

        Args:
            history: forms of the history that it reads.
            history_counts: whether its tower learns the counts of the gated history.

        Raises:
            DatasetError: a vocabulary is missing or damaged, or data.vocabulary names an unknown
                entity.
        """
        for folder in self._folders:
            check_at_open(folder, "vocabulary")
        return build_layout(
            self._config.dir,
            self.schema,
            vocabulary=self._config.vocabulary,
            history=history,
            counts=self._config.history.counts if history_counts else None,
            dayparts=self._config.history.dayparts,
        )

    def impressions(
        self,
        split: SplitName,
        *,
        first: int = 0,
        stop: int | None = None,
        seed: int | None = None,
        extra_columns: Sequence[str] = (),
        softened: bool = False,
    ) -> ImpressionOrder:
        """The impressions of some requests of a split.

        Args:
            split: train or test.
            first: first request wanted, counted in order of time.
            stop: end of the requests wanted; None: all that follow.
            seed: seed of the shuffle; None keeps the order of time.
            extra_columns: further candidate columns to read.
            softened: with the soft labels of the configuration, if it has any; of the training
                split from its first request.

        Raises:
            ConfigError: soft labels are missing, or of another split.
            DatasetError: files are missing, damaged, empty, or lack a column.
        """
        periods = self.periods(split)
        for period in periods:
            if period in (TRAIN, TEST):
                check_at_open(self._config.dir, period)
            else:
                check_at_open(day_folder(self._config.dir, period), "requests")
        wanted = self._config.soft_labels if softened else None
        soft_labels = SoftLabels(wanted, self.schema) if wanted else None
        files = RequestFiles(
            self._config.dir,
            self.schema,
            *periods,
            first=first,
            stop=stop,
            extra_columns=extra_columns,
            soft_labels=soft_labels,
        )
        together = self._config.shuffled_together
        return ImpressionOrder(files, seed=seed, shuffled_together=together)

    def inputs(
        self, layout: FeatureLayout, *, batch_size: int, seed: int, blocks: Blocks = "by_length"
    ) -> InputAssembler:
        """What turns impressions and their histories into what a model reads.

        Args:
            layout: from `layout`.
            batch_size: places in a batch.
            seed: seed of the training noise.
            blocks: how sequences are grouped.
        """
        return InputAssembler(
            layout,
            self.store,
            batch_size=batch_size,
            max_history_length=self._config.history.max_length,
            seed=seed,
            blocks=blocks,
        )

    def assembler(self, layout: FeatureLayout, *, batch_size: int, seed: int) -> BatchAssembler:
        """What makes batches of the same; arguments as of `inputs`."""
        return BatchAssembler(self.inputs(layout, batch_size=batch_size, seed=seed))
