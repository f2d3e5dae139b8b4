"""What a dataset directory declares about itself (`schema.toml`).

The schema is the only thing that the reader, the model and the evaluation know of a dataset:
which parquet column plays which role of the paper's Query x User x Item x Context, how large each
id space is, and which behaviours the history store holds.
"""

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli_w
from pydantic import ValidationError, model_validator

from cdp_torchrec.config import Config
from cdp_torchrec.data.history.behaviour_attributes import BehaviourAttribute, standardised
from cdp_torchrec.data.identity import DatasetDigest, VocabularyDigest
from cdp_torchrec.user_error import UserError

if TYPE_CHECKING:
    import numpy as np

SplitName = Literal["train", "test"]

SCHEMA_VERSION = 2
DAY_VERSION = 1
USER_ENTITY = "user"
"""Entity of the column `user_id`, whose behaviours the history store has."""

LARGEST_NUMBER = float.fromhex("0x1.fffffep+127")  # of float32
"""Numbers beyond it, in a log or in a request, are refused."""
EARLIEST_DATE_MS = 631_152_000_000
"""Start of 1990. A log with real dates that has an earlier one has another unit, or none."""
LATEST_TIMESTAMP_MS = 7_258_118_400_000
"""The year 2200: a later moment was not given in milliseconds."""

SCHEMA = "schema.toml"
"""The file of a dataset that says what is in it."""
STARTER = "starter.toml"
"""The file of a dataset that is a first configuration for it, a layer."""

Role = Literal["user", "query", "item", "context", "scene"]
Level = Literal["request", "candidate"]
Kind = Literal["id", "ids", "number"]


class DatasetError(UserError, ValueError):
    """A dataset directory is incomplete, damaged or of another version."""


class Entity(VocabularyDigest):
    """An id space: items, users, categories, query tokens ...

    Codes run by descending training count; 0 means missing.
    """


class Feature(Config):
    """One parquet column and its role in the model."""

    name: str
    """Column name; also the key of the feature in every KeyedJaggedTensor."""
    role: Role
    """Which embedding of the paper it belongs to (q, u, i, x_ctx, x_scn)."""
    level: Level
    """Stored once per request, or as a list with one element per candidate."""
    kind: Kind
    """One id, a bag of ids (request level only), or a number."""
    entity: str | None = None
    """Id space of an "id" or "ids" feature."""
    mean: float = 0.0
    """Mean of a "number" over the training impressions."""
    std: float = 1.0
    """Standard deviation of a "number" over the training impressions."""

    def standardise(self, raw: "np.ndarray") -> "np.ndarray":
        """A "number" as the model reads it, float64; see `standardised`."""
        return standardised(raw, mean=self.mean, std=self.std)

    @model_validator(mode="after")
    def _check(self) -> "Feature":
        if (self.kind == "number") == (self.entity is not None):
            raise ValueError(f"feature '{self.name}': ids need an entity, numbers have none")
        if self.kind == "ids" and self.level != "request":
            raise ValueError(f"feature '{self.name}': a bag of ids must be of level 'request'")
        if self.kind == "number" and not 0 < self.std < math.inf:
            raise ValueError(f"feature '{self.name}': std must be positive, found {self.std}")
        if not math.isfinite(self.mean):
            raise ValueError(f"feature '{self.name}': mean must be finite, found {self.mean}")
        return self

    @property
    def meaning(self) -> str:
        """What a model takes its values for, in words that are equal where the meaning is."""
        what = f"ids of {self.entity}"
        if self.kind == "number":
            what = f"mean {self.mean!r}, std {self.std!r}"
        return f"{self.kind} of each {self.level}, role {self.role}, {what}"


class HistorySchema(Config):
    """Id spaces of the behaviour store and its size."""

    item_entity: str = "item"
    """Entity of the items behaved on; the same as the one of the feature `item_id`."""
    category_entity: str | None = None
    """Entity of the category gate; None: the log has no category, so no gate."""
    action_entity: str | None = None
    """Entity of the action types (click, view ...); None: not logged."""
    attributes: tuple[BehaviourAttribute, ...] = ()
    """What else is known of each behaviour."""
    num_behaviours: int = 0
    num_users: int = 0

    @property
    def entities(self) -> dict[str, str]:
        """Entity of each part of a behaviour that the log has: "item", "category", "action"."""
        parts = {
            "item": self.item_entity,
            "category": self.category_entity,
            "action": self.action_entity,
        }
        return {part: entity for part, entity in parts.items() if entity is not None}

    @property
    def code_columns(self) -> dict[str, str]:
        """Entity of each column of codes in the store: the parts, and attributes that are ids."""
        ids = {a.file: a.entity for a in self.attributes if a.entity is not None}
        return self.entities | ids


class Split(Config):
    """Size and time span of one split."""

    requests: int
    impressions: int
    clicks: int
    first_timestamp: int
    """Milliseconds since the epoch."""
    last_timestamp: int
    """Milliseconds since the epoch."""

    @property
    def click_rate(self) -> float:
        """Clicks per impression, in (0, 1): half a click if there is none, or nothing else."""
        clicks = min(max(self.clicks, 0.5), self.impressions - 0.5)
        return clicks / self.impressions


class Day(Config):
    """What appending a day added to a dataset (`days/<name>/day.toml`).

    Nothing of what was there changes: new ids have the codes after those of the day before.
    """

    version: int = DAY_VERSION
    name: str
    """Date of its first request at UTC, such as 2025-02-10; taken from an inbox, the name that it
    had there, which may end with a time, such as 2025-02-10T13-00-00. Later days have names that
    are later in the order of text."""
    first_request: int
    """Number of its first request: requests are numbered over the whole dataset."""
    requests: Split
    num_behaviours: int
    last_timestamp: int
    """Latest moment of a request or behaviour, milliseconds since the epoch: what is appended next
    lies behind it."""
    entities_before: dict[str, Entity]
    """Vocabularies of the dataset that it was appended to."""
    entities: dict[str, Entity]
    """Vocabularies with its new ids."""
    log_bytes: int | None = None
    """Size of the files that a mapping read it from; None: it came as staging files."""


class Schema(Config):
    """The whole of `schema.toml`."""

    version: int = SCHEMA_VERSION
    name: str
    source: str
    """Where the log came from, in words."""
    entities: dict[str, Entity]
    features: tuple[Feature, ...]
    history: HistorySchema
    splits: dict[SplitName, Split]
    bayes: dict[str, float] = {}
    """Metrics of the true click probabilities on the test split (synthetic data only)."""
    days: tuple[Day, ...] = ()
    """Appended days whose ids and behaviours are read; those of a dataset lie beside its schema."""
    trained_days: int = 0
    """So many of them, the first ones, are known to a training; later ones are measured on."""

    @model_validator(mode="after")
    def _check(self) -> "Schema":
        used = [f.entity for f in self.features if f.entity is not None]
        used += self.history.code_columns.values()
        missing = sorted(set(used) - set(self.entities))
        if missing:
            raise ValueError(f"entities {missing} are used by features but not declared")
        names = [f.name for f in self.features]
        if len(set(names)) != len(names):
            raise ValueError(f"feature names repeat: {sorted(names)}")
        if "item_id" not in names:
            raise ValueError("a feature named 'item_id' (level candidate, kind id) is required")
        return self

    @property
    def first_entities(self) -> Mapping[str, Entity]:
        """Vocabularies before any day was appended."""
        return self.days[0].entities_before if self.days else self.entities

    @property
    def trained_entities(self) -> Mapping[str, Entity]:
        """Vocabularies as a training knows them, whatever day it is measured on."""
        return (
            self.days[self.trained_days - 1].entities if self.trained_days else self.first_entities
        )

    def feature(self, name: str) -> Feature:
        """The feature of that name.

        Raises:
            KeyError: no such feature.
        """
        return {feature.name: feature for feature in self.features}[name]

    def gate_feature(self) -> str | None:
        """The candidate feature that holds the category of the gate; None without a gate."""
        gate = self.history.category_entity
        names = [f.name for f in self.features if f.level == "candidate" and f.entity == gate]
        return names[0] if gate and names else None

    def domain_feature(self) -> str | None:
        """The first request feature of role scene that is an id: a log without domains has these.

        None: there is none.
        """
        names = [
            f.name
            for f in self.features
            if f.role == "scene" and f.level == "request" and f.kind == "id"
        ]
        return names[0] if names else None

    def without(self, names: Sequence[str]) -> "Schema":
        """The same dataset read without some features.

        Raises:
            KeyError: no such feature, or one that the history needs.
        """
        for name in names:
            if name in ("item_id", self.gate_feature()):
                raise KeyError(f"feature '{name}' is needed by the history")
            found = [f.name for f in self.features] + [*map(_named, self.history.attributes)]
            if name not in found:
                raise KeyError(f"the dataset has no feature '{name}'; it has {found}")
        kept = tuple(f for f in self.features if f.name not in names)
        attributes = tuple(a for a in self.history.attributes if _named(a) not in names)
        history = self.history.model_copy(update={"attributes": attributes})
        return self.model_copy(update={"features": kept, "history": history})

    def digest(self) -> DatasetDigest:
        """Which raw id has which code, and what the features are: what a model depends on."""
        used = [f.entity for f in self.features if f.entity]
        used += self.history.code_columns.values()
        meanings = {f.name: f.meaning for f in self.features}
        meanings |= {_named(a): a.meaning for a in self.history.attributes}
        return self._digest(used, meanings)

    def history_digest(self) -> DatasetDigest:
        """Which raw id has which code in the history store, whatever the requests hold."""
        return self._digest([USER_ENTITY, *self.history.entities.values()], {})

    def _digest(self, entities: Iterable[str], features: Mapping[str, str]) -> DatasetDigest:
        """What a training knows, and beside it how the vocabularies have grown day by day."""
        names = sorted({*entities} & self.entities.keys())
        stages = [self.first_entities, *(day.entities for day in self.days)]
        grown = {
            name: tuple(
                VocabularyDigest(num_ids=stage[name].num_ids, digest=stage[name].digest)
                for stage in stages
            )
            for name in names
        }
        return DatasetDigest(
            vocabularies={name: grown[name][self.trained_days] for name in names},
            features=features,
            history=self.history.entities,
            stages=grown,
        )

    def fingerprint(self) -> str:
        """The digest in 16 hexadecimal digits."""
        return self.digest().fingerprint

    def save(self, dataset: Path) -> None:
        """Write `<dataset>/schema.toml`."""
        unused: dict[str, Any] = {} if self.days else {"days": True, "trained_days": True}
        if not self.history.attributes:
            unused["history"] = {"attributes"}
        data = self.model_dump(mode="json", exclude_none=True, exclude=unused)
        text = tomli_w.dumps({"dataset_digest": self.fingerprint()} | data)
        (dataset / SCHEMA).write_text(text)


def load_schema(dataset: Path) -> Schema:
    """Read `<dataset>/schema.toml`.

    Raises:
        DatasetError: no dataset there, unreadable, or written by another version.
    """
    path = dataset / SCHEMA
    if not path.is_file():
        raise DatasetError(
            f"{dataset} is no dataset directory: {path.name} is missing{_counted_from(dataset)}. "
            "Make one with `cdp_torchrec prepare_data` (its --help says how), or name another one"
        )
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not valid TOML: {error}") from error
    if data.get("version") != SCHEMA_VERSION:
        raise DatasetError(
            f"{path}: schema version {data.get('version')!r}, this release reads version "
            f"{SCHEMA_VERSION}. Prepare the dataset again with "
            "`cdp_torchrec prepare_data`"
        )
    written = data.pop("dataset_digest", None)
    try:
        # strict=False: TOML has arrays where the model has tuples.
        schema = Schema.model_validate(data, strict=False)
    except ValidationError as error:
        raise DatasetError(f"{path}: {error}") from error
    if written is not None and written != schema.fingerprint():
        raise DatasetError(
            f"{path}: was changed after the preparation: dataset_digest = {written!r}, but its "
            f"features and vocabularies have {schema.fingerprint()}"
        )
    return schema


def _named(attribute: BehaviourAttribute) -> str:
    """How settings and messages name it among the features."""
    return f"history.{attribute.name}"


def _counted_from(dataset: Path) -> str:
    if dataset.is_absolute() or dataset.is_dir():
        return ""
    return f" (a relative path counts from the working directory, {Path.cwd()})"
