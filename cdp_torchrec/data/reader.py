"""What is read of a dataset directory: its schema, and its parts as one model sees them."""

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from cdp_torchrec.data.assemble import BatchAssembler
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.history_lookup import HistoryLookup
from cdp_torchrec.data.history_store import HistoryStore
from cdp_torchrec.data.layout import FeatureLayout, build_layout
from cdp_torchrec.data.manifest import check_at_open
from cdp_torchrec.data.request_files import RequestFiles
from cdp_torchrec.data.requests import ImpressionOrder
from cdp_torchrec.data.schema import Schema, read_schema
from cdp_torchrec.data.sequence_index import Blocks


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
    def store(self) -> HistoryStore:
        """The behaviours of all users.

        Raises:
            DatasetError: the files are missing or damaged.
        """
        history = self.schema.history
        num_ids = {part: self.schema.entities[e].num_ids for part, e in history.entities.items()}
        check_at_open(self._config.dir, "history")
        store = HistoryStore(
            self._config.dir / "history", history, num_categories=num_ids.get("category", 0)
        )
        store.check_sample(num_ids)
        return store

    def layout(self, history: HistoryLookup, *, history_counts: bool) -> FeatureLayout:
        """Tables and keys for a model.

        Args:
            history: forms of the history that it reads.
            history_counts: whether its tower learns the counts of the gated history.

        Raises:
            DatasetError: a vocabulary is missing or damaged, or data.vocabulary names an unknown
                entity.
        """
        check_at_open(self._config.dir, "vocabulary")
        return build_layout(
            self._config.dir,
            self.schema,
            vocabulary=self._config.vocabulary,
            history=history,
            count_segments=self._config.history.count_segments if history_counts else None,
        )

    def impressions(
        self,
        split: Literal["train", "test"],
        *,
        first: int = 0,
        stop: int | None = None,
        seed: int | None = None,
        extra_columns: Sequence[str] = (),
    ) -> ImpressionOrder:
        """The impressions of some requests of a split.

        Args:
            split: train or test.
            first: first request wanted, counted in order of time.
            stop: end of the requests wanted; None: all that follow.
            seed: seed of the shuffle; None keeps the order of time.
            extra_columns: further candidate columns to read.

        Raises:
            DatasetError: files are missing, damaged, empty, or lack a column.
        """
        check_at_open(self._config.dir, split)
        files = RequestFiles(
            self._config.dir,
            self.schema,
            split,
            first=first,
            stop=stop,
            extra_columns=extra_columns,
        )
        together = self._config.shuffled_together
        return ImpressionOrder(files, seed=seed, shuffled_together=together)

    def assembler(
        self, layout: FeatureLayout, *, batch_size: int, seed: int, blocks: Blocks = "by_length"
    ) -> BatchAssembler:
        """What makes batches of impressions and their histories.

        Args:
            layout: from `layout`.
            batch_size: places in a batch.
            seed: seed of the training noise.
            blocks: how sequences are grouped.
        """
        return BatchAssembler(
            layout,
            self.store,
            batch_size=batch_size,
            max_history_length=self._config.history.max_length,
            seed=seed,
            blocks=blocks,
        )
