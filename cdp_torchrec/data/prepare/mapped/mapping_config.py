"""What the columns of a log mean: the mapping by which `prepare_data generic` reads it."""

import re
from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from cdp_torchrec.config import Config, ConfigConflicts, OneOrSeveral
from cdp_torchrec.data.prepare.mapped.behaviour_config import (
    AttributeConfig,
    BehaviourConfig,
    attribute_conflicts,
)
from cdp_torchrec.data.prepare.table_config import Moment, RowRule, TableConfig, TimeConfig
from cdp_torchrec.data.schema import USER_ENTITY, Feature, Kind, Level, Role

ITEM_ENTITY = "item"
ACTION_ENTITY = "action"
RESERVED_FEATURES = (
    "user_id",
    "item_id",
    "request_id",
    "number",
    "place",
    "timestamp",
    "label",
    "history_length",
    "history_rank",
    "click_probability",
)


class LogConfig(Config):
    """The table with the requests: who was shown what, when, and what was clicked."""

    table: str
    """Name in [tables]."""
    rows: Literal["impression", "request", "action"]
    """What a row is: one candidate of a request; a request with lists of candidates; or an action
    of a log that does not say what was shown, so that negatives are drawn ([sampling])."""
    user: str
    """Column of the user."""
    item: str
    """Column of the item; of a list of items if rows = "request"."""
    time: TimeConfig
    """When the candidates were shown."""
    request: tuple[str, ...] = ()
    """Columns that together tell requests apart. Empty: user and time for impressions, the row for
    requests."""
    label: RowRule | None = None
    """Which candidates are clicks, by a column (of lists if rows = "request"); which actions are
    the positives, all of them if it is not set."""
    clicked: str | None = None
    """Instead of label, if rows = "request": column of the clicked item or items."""
    separator: str | None = Field(None, min_length=1)
    """Between the elements of lists that are text."""
    only: OneOrSeveral[RowRule] = ()
    """Which rows are read, such as those with a user (filled = true); not set: all. Rules in a
    list must all hold, each asked of the rows that those before it leave."""
    order: Literal["file", "hash"] = "file"
    """Candidates of a request as they stand in the file, or in the order of a hash: for logs that
    have the clicks first."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        conflicts = []
        if self.rows != "action" and (self.label is None) == (self.clicked is None):
            conflicts.append(("label", "exactly one of label and clicked must be set"))
        if self.rows != "request":
            for name in ("clicked", "separator"):
                if getattr(self, name) is not None:
                    conflicts.append((name, f"has no effect on rows = '{self.rows}'"))
        if self.rows == "action":
            for name in ("request", "order"):
                if name in self.model_fields_set:
                    conflicts.append((name, "has no effect on rows = 'action'"))
        if conflicts:
            raise ConfigConflicts(conflicts)
        return self


class SamplingConfig(Config):
    """Negatives for a log that does not say what was shown: each positive becomes a request.

    They are drawn among the items of positives strictly before the request, so a positive on an
    item that nobody had met before is left out. Nobody has seen such a list.
    """

    num_negatives: int = Field(9, ge=1, le=1000)
    """Negatives of each request."""
    weights: Literal["popularity", "uniform"] = "popularity"
    """How likely an item is drawn: in proportion to its positives so far, or all alike. If all
    alike, popularity alone tells much of the label."""
    share: float = Field(1.0, gt=0.0, le=1.0)
    """Share of the positives that become requests; all of them are behaviours."""
    seed: int = Field(0, ge=0)
    """Of the draws, which are hashes of it and the positive."""


class FeatureConfig(Config):
    """One feature of the dataset; `user_id` and `item_id` are there without being listed."""

    role: Role
    """Which embedding of the paper it belongs to: q, u, i, x_ctx, x_scn."""
    level: Level
    """Once per request, or one for each candidate."""
    kind: Kind
    """One id, a bag of ids (request level only), or a number."""
    column: str | None = Field(None, min_length=1)
    """Where it stands; not set: the column of its name."""
    table: str | None = None
    """Name in [tables] of a table of attributes; not set: that of the log."""
    separator: str | None = Field(None, min_length=1)
    """Between several ids in a cell: kind "ids" takes all of them, kind "id" the first; of lists, a
    feature of level "candidate" takes the first as well."""
    entity: str | None = None
    """Id space; not set: the name of the feature, without _id at its end."""
    derive: Literal["hour", "weekday", "position"] | None = None
    """Instead of a column: hour or weekday (0: Monday) of the request in local time, or the place
    in the list of candidates from 1."""

    @property
    def takes_first(self) -> bool:
        """Whether it is the first of a list: there are no bags of candidates."""
        return self.level == "candidate" and self.kind == "id"


class WindowConfig(Config):
    """The time of the log: rows outside are left out, and counted."""

    start: Moment | None = None
    """First moment that counts, such as 2017-11-25T00:00:00+08:00."""
    end: Moment | None = None
    """First moment that no longer counts."""


class SplitConfig(Config):
    """Which requests are the test split, and which are requests at all."""

    test_from: Moment | None = None
    """Requests from here on are the test split, such as 2017-12-03T00:00:00+08:00."""
    test_share: float | None = Field(None, gt=0.0, lt=1.0)
    """Instead: this share of the requests, the latest ones, such as 0.2."""
    requests_from: Moment | None = None
    """Before it the log is history only; not set: from the start."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.test_from is None) == (self.test_share is None):
            raise ConfigConflicts(
                [("test_from", "exactly one of test_from and test_share must be set")]
            )
        return self


class MappingConfig(Config):
    """A log: its files, and what their columns mean."""

    name: str = Field(min_length=1)
    """Of the dataset."""
    source: str
    """Where the log came from, in words."""
    tables: dict[str, TableConfig] = Field(min_length=1)
    """The files, by names that the other sections use."""
    log: LogConfig
    """The requests."""
    sampling: SamplingConfig | None = None
    """Negatives, where a row is an action."""
    features: dict[str, FeatureConfig] = {}
    """Features by name."""
    category: str | None = None
    """Feature of the candidates that is the category of the gate; not set: there is no gate."""
    behaviours: dict[str, BehaviourConfig] = Field(min_length=1)
    """The histories, from one source or several."""
    attributes: dict[str, AttributeConfig] = {}
    """What else is known of each behaviour, by name."""
    window: WindowConfig = WindowConfig()
    """Rows that count, by time."""
    split: SplitConfig
    """Training and test."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        conflicts = [*self._table_conflicts(), *self._feature_conflicts()]
        conflicts += attribute_conflicts(self.attributes, self.behaviours, self.tables)
        if (self.sampling is None) == (self.log.rows == "action"):
            conflicts.append(("sampling", "rows = 'action' needs it, other logs have none"))
        for key, text in (("name", self.name), *((f"behaviours.{n}", n) for n in self.behaviours)):
            if not text.isprintable():
                conflicts.append((key, "must be printable"))
        if conflicts:
            raise ConfigConflicts(conflicts)
        return self

    def _table_conflicts(self) -> Iterator[tuple[str, str]]:
        logs = {"log.table": self.log.table}
        logs |= {f"behaviours.{n}.table": b.table for n, b in self.behaviours.items() if b.table}
        for key, table in logs.items():
            if table not in self.tables:
                yield key, f"must be one of the tables {sorted(self.tables)}"
            elif self.tables[table].by:
                yield key, f"must be a log, but tables.{table} has attributes (by)"
        gate = self.features.get(self.category or "")
        for name, behaviour in self.behaviours.items():
            own = behaviour.table not in (None, self.log.table)
            if own and gate and not gate.table and not behaviour.category:
                key = f"behaviours.{name}.category"
                yield key, f"must be set: feature '{self.category}' stands in the log only"
            if behaviour.category and not gate:
                yield f"behaviours.{name}.category", "has no effect without a category (category)"
            if behaviour.time:
                yield from _clock_conflicts(f"behaviours.{name}.time", behaviour.time)
        if not self.derives_local_time:
            yield from _clock_conflicts("log.time", self.log.time)
        attributes = {f.table for f in (*self.features.values(), *self.attributes.values())}
        for name in self.tables:
            if name not in {*logs.values(), *attributes}:
                yield f"tables.{name}", "is not used"

    def _feature_conflicts(self) -> Iterator[tuple[str, str]]:
        for name, feature in self.features.items():
            key = f"features.{name}"
            if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in RESERVED_FEATURES:
                yield key, "must be a name of a-z, 0-9 and _ that is not reserved"
            entity = self._entity(name)
            if not re.fullmatch("[a-z][a-z0-9_]*", entity) or entity == "request":
                yield f"{key}.entity", "must be a name of a-z, 0-9 and _, and not 'request'"
            if feature.kind == "number" and feature.entity:
                yield f"{key}.entity", "has no effect on kind = 'number'"
            if feature.kind == "number" and feature.separator:
                yield f"{key}.separator", "has no effect on kind = 'number'"
            if feature.kind == "ids" and feature.level == "candidate":
                yield f"{key}.kind", "must be 'id' or 'number' on level 'candidate'"
            yield from self._source_conflicts(key, feature)
        gate = self.features.get(self.category or "")
        if self.category and (gate is None or (gate.level, gate.kind) != ("candidate", "id")):
            ids = [n for n, f in self.features.items() if (f.level, f.kind) == ("candidate", "id")]
            yield "category", f"must be a feature of level 'candidate' and kind 'id': {ids}"
        elif gate and gate.derive:
            yield "category", f"'{self.category}' is derived: behaviours have no place in a list"

    def _source_conflicts(self, key: str, feature: FeatureConfig) -> Iterator[tuple[str, str]]:
        if feature.derive:
            level = "candidate" if feature.derive == "position" else "request"
            if feature.level != level:
                yield f"{key}.level", f"must be '{level}' where derive = '{feature.derive}'"
            if feature.column or feature.table or feature.separator:
                yield key, "derive needs no column, table or separator"
            if feature.derive == "position" and (
                self.log.rows == "action" or self.log.order == "hash"
            ):
                yield f"{key}.derive", "lists in the order of hashes have no positions"
        elif feature.table:
            table = self.tables.get(feature.table)
            by = {"request": "user", "candidate": "item"}[feature.level]
            if table is None or table.by != by:
                fitting = [name for name, t in self.tables.items() if t.by == by]
                yield f"{key}.table", f"must be one of the tables with by = '{by}': {fitting}"

    def of_new_rows(self) -> "MappingConfig":
        """What is read of rows that are to be scored, on which nobody has clicked yet.

        Nothing of labels, behaviours and [split], nor of tables that only those need. No file can
        say such a mapping.
        """
        tables = {self.log.table, *(feature.table for feature in self.features.values())}
        return self.model_copy(
            update={
                "tables": {name: t for name, t in self.tables.items() if name in tables},
                "log": self.log.model_copy(update={"label": None, "clicked": None}),
                "behaviours": {},
                "attributes": {},
                "split": self.split.model_copy(update={"requests_from": None}),
            }
        )

    def schema_features(self) -> tuple[Feature, ...]:
        """The features of the dataset."""
        user = Feature(name="user_id", role="user", level="request", kind="id", entity=USER_ENTITY)
        item = Feature(
            name="item_id", role="item", level="candidate", kind="id", entity=ITEM_ENTITY
        )
        listed = [
            Feature(
                name=name,
                role=feature.role,
                level=feature.level,
                kind=feature.kind,
                entity=None if feature.kind == "number" else self._entity(name),
            )
            for name, feature in self.features.items()
        ]
        return (user, item, *listed)

    @property
    def derives_local_time(self) -> bool:
        """Whether a feature is what a clock on a wall said at the request."""
        return any(feature.derive in ("hour", "weekday") for feature in self.features.values())

    @property
    def category_entity(self) -> str | None:
        """Id space of the categories."""
        return self.category and self._entity(self.category)

    def _entity(self, feature: str) -> str:
        return self.features[feature].entity or feature.removesuffix("_id")

    @property
    def has_actions(self) -> bool:
        """Whether behaviours differ in what was done."""
        return len(self.behaviours) > 1 or any(b.action for b in self.behaviours.values())


def _clock_conflicts(key: str, time: TimeConfig) -> Iterator[tuple[str, str]]:
    """What is wrong with the clock of a time from which no hour is derived."""
    for name in ("utc_offset", "zone"):
        if time.names_its_zone and name in time.model_fields_set:
            which = f"format = '{time.format}'" if time.format else f"unit = '{time.unit}'"
            yield f"{key}.{name}", f"has no effect on {which}, unless an hour is derived from it"
