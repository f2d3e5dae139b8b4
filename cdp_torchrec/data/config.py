"""Settings of the dataset and of how it is read."""

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cdp_torchrec.config import MAY_CHANGE, Config
from cdp_torchrec.data.history.lookup import HistoryCounts
from cdp_torchrec.data.synthetic.config import SyntheticConfig

TRAIN, TEST = "train", "test"
"""The periods of a log that its preparation makes; the others are days that were appended."""
_APPENDED = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}-[0-9]{2}-[0-9]{2})?")
APPENDED_NAMES = "a date, such as 2025-02-10, or a date and a time, such as 2025-02-10T13-00-00"
"""How periods that were appended are named: text in the order of time."""


def is_appended(name: str) -> bool:
    """Whether a period that was appended may have this name."""
    return _APPENDED.fullmatch(name) is not None


def check_period(name: str) -> None:
    """Check that a period may have this name.

    Raises:
        ValueError: it may not.
    """
    if name not in (TRAIN, TEST) and not is_appended(name):
        raise ValueError(
            f"'{name}' is no period: allowed are '{TRAIN}', '{TEST}' and appended days, whose "
            f"names are {APPENDED_NAMES}"
        )


NumRows = Annotated[int, Field(gt=0, le=1 << 40)]
"""Of a table: as many as ids can be told apart by managed collision, and far beyond any memory."""
EvictionPolicyName = Literal["lfu", "lru", "distance_lfu"]
"""TorchRec's eviction policies."""


class ManagedCollisionConfig(Config):
    """Rows that ids win and lose during training: TorchRec's managed collision, ZCH."""

    zch_size: NumRows
    """Rows of the table, a multiple of buckets."""
    buckets: Annotated[int, Field(ge=1, le=1024)] = 16
    """Parts of the table, each with the ids of one remainder, a map of its own, and one row that
    its ids without a row of their own share. The number of ranks must divide it; nothing else
    depends on the number of ranks."""
    eviction_policy: EvictionPolicyName = "distance_lfu"
    """Whose row a new id takes: the least frequent id's, the least recent one's, or that with the
    lowest count per step since it was last seen; and only if the new id scores higher. What counts
    is in how many steps an id was seen, whatever the number of ranks."""
    eviction_interval: PositiveInt = 100
    """Steps between two assignments of rows; there is one before each checkpoint, too. Until the
    first one, all ids share their bucket's row."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.zch_size % self.buckets or self.zch_size < 2 * self.buckets:
            raise ValueError(
                f"zch_size = {self.zch_size} must be a multiple of buckets = {self.buckets}, with "
                "at least 2 rows for each"
            )
        return self


class VocabularyConfig(Config):
    """Which ids of an entity get an embedding row of their own."""

    min_count: PositiveInt = 1
    """Ids seen fewer times than this in training share out-of-vocabulary rows."""
    num_oov_rows: PositiveInt = 1
    """Number of out-of-vocabulary rows; a rare id always falls on the same one. Many rows keep
    rare ids apart, so that an unseen item still matches itself in the history."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that, in training, an id stands on the out-of-vocabulary row that it would have
    if it were rare, everywhere in a request. So these rows learn what new ids will need of them,
    and other features what to do without the id. Evaluation and serving never do it."""
    hash_bucket_size: NumRows | None = None
    """Instead of that: the table has so many rows, and every id falls on one by a hash of its text,
    also an id that training never saw (feature hashing). Ids that collide are one id to the model;
    the start of a training says how many do, `inspect` at which size."""
    hash_seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Seed of that hash: with another one, other ids collide."""
    managed_collision: ManagedCollisionConfig | None = None
    """Instead of that: rows are assigned during training, to the ids that deserve them then."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        either = ("hash_bucket_size", "managed_collision")
        chosen = [key for key in either if getattr(self, key) is not None]
        if len(chosen) == 2:
            raise ValueError("only one of hash_bucket_size and managed_collision may be set")
        unused = {"min_count": 1, "num_oov_rows": 1, "dropout": 0}
        set_here = [key for key, nothing in unused.items() if getattr(self, key) != nothing]
        if chosen and set_here:
            remedy = ", ".join(f"{k} = {unused[k]} (found {getattr(self, k)})" for k in set_here)
            raise ValueError(
                f"{chosen[0]} decides which ids have rows: it leaves nothing for min_count, "
                f"num_oov_rows and dropout; set {remedy}"
            )
        if self.hash_seed and self.hash_bucket_size is None:
            raise ValueError("hash_seed has no effect without hash_bucket_size")
        return self


class HistoryConfig(Config):
    """How much of the history a model sees."""

    max_length: PositiveInt = 100
    """Behaviours of a sequence: the most recent ones of the user, and apart from them the most
    recent ones in the target item's category. Pooled sums and counts read all behaviours in the
    category, however many. The paper's users have 2000 behaviours on average."""
    dayparts: Annotated[int, Field(ge=1, le=24)] = 1
    """Equal parts of the day, from midnight UTC, by which behaviours are told apart: what people
    look for at noon is not what they look for at night. Pooled modules see each part's sum, modules
    that read sequences the part of each behaviour. 1: the time of day is not read."""
    count_segments: tuple[PositiveInt, ...] = ()
    """Sizes of the most recent segments of the gated history in which the tower learns its counts
    (model.interaction.history_counts); a last segment holds all older behaviours."""
    count_ages: tuple[PositiveFloat, ...] = ()
    """Ages in days, rising, by which the tower learns the same counts once more: behaviours that
    are at most so old and older than the age before it; a last interval holds all older ones. What
    was bought twice last week is another item than what was bought twice last year."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(later <= age for age, later in pairwise(self.count_ages)):
            raise ValueError(f"count_ages must rise, found {list(self.count_ages)}")
        return self

    @property
    def counts(self) -> HistoryCounts:
        """By what counts are told apart, for a tower that learns them."""
        return HistoryCounts(self.count_segments, self.count_ages)


class SoftLabelsConfig(Config):
    """A teacher whose click probabilities a training learns from: knowledge distillation."""

    file: Annotated[Path, MAY_CHANGE]
    """Parquet file with the columns label and probability, a row for each impression of the
    training split, held-out ones too, in its order; `cdp_torchrec evaluate TEACHER --split train
    --predictions` writes it. The teacher must not have seen the test split. A training that goes on
    may find the file elsewhere, and only as it was."""
    weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How much of a training label is the teacher's: (1 - weight) click + weight probability; 0 is
    a training without a teacher. Validation and test keep the clicks."""


class DataConfig(Config):
    """The dataset and how it is read."""

    dir: Annotated[Path, MAY_CHANGE]
    """Dataset directory, made by `cdp_torchrec prepare_data`."""
    synthetic: SyntheticConfig | None = None
    """Make this synthetic log at data.dir if nothing is there yet."""
    exclude_features: tuple[str, ...] = ()
    """Features that are not read at all, such as the weekday of a log of two days."""
    vocabulary: Mapping[str, VocabularyConfig] = {}
    """Handling of rare ids by entity; the defaults for all that are not named."""
    history: HistoryConfig = HistoryConfig()
    """How much of the history is read."""
    shuffled_together: PositiveInt = 65_536
    """Requests in a window of the shuffle: row groups come in random order, and the requests of a
    window of them, at least so many, are mixed. Row groups are stretches of time; with windows of
    one row group (1) the batches of a stretch follow each other, and a model learns worse. A window
    is in memory, in each data worker, too."""
    soft_labels: SoftLabelsConfig | None = None
    """Learn from the click probabilities of a teacher, such as a model too dear to serve."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training requests, the latest ones, held out for validation."""
    train_on: Annotated[tuple[str, ...], Field(min_length=1)] = (TRAIN,)
    """Periods of the log whose requests are the training split, in the order of time: "train",
    "test" and dates of appended days (`cdp_torchrec prepare_data append`), with a time where
    `prepare_data follow` appended shorter ones. Ids and their counts are those that the dataset had
    after the last of them."""
    test_on: str = TEST
    """The period that is the test split, later than those."""

    @model_validator(mode="after")
    def _check_periods(self) -> Self:
        periods = (*self.train_on, self.test_on)
        for period in periods:
            check_period(period)
        places = [(period != TRAIN, period != TEST, period) for period in periods]
        if any(a >= b for a, b in pairwise(places)):
            raise ValueError(
                f"train_on = {list(self.train_on)}, test_on = '{self.test_on}': each period must "
                "be later than the one before it"
            )
        return self
