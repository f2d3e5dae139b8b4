"""What the columns of past actions mean: a part of a mapping."""

import re
from collections.abc import Iterator, Mapping
from typing import Self

from pydantic import Field, model_validator

from cdp_torchrec.config import Config, ConfigConflicts, OneOrSeveral
from cdp_torchrec.data.history.behaviour_attributes import (
    RESERVED_ATTRIBUTES,
    AttributeKind,
    BehaviourAttribute,
    MaxIds,
)
from cdp_torchrec.data.prepare.table_config import RowRule, TableConfig, TimeConfig

_MAX_IDS = 4


class BehaviourConfig(Config):
    """Past actions of users. Its name is the action where no column says it.

    Without a table they are the positives of the log.
    """

    table: str | None = None
    """Name in [tables]; may be that of the log."""
    user: str | None = None
    """Column of the user."""
    item: tuple[str, ...] = ()
    """Column of the item. Several columns where the log names no item: together they stand for an
    item unknown, which has no row of its own in training but may have a category."""
    category: str | None = None
    """Column of the category; not set: that of the item in the table where `category` stands."""
    action: str | None = None
    """Column of the kind of action, such as view or buy."""
    time: TimeConfig | None = None
    """When it happened."""
    only: OneOrSeveral[RowRule] = ()
    """Which rows count; not set: all. Rules in a list must all hold, each asked of the rows that
    those before it leave."""
    attributes: Mapping[str, str] = {}
    """Column of each attribute ([attributes]) that this table has; it is missing in behaviours of
    the others."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        needed = {"user", "item", "time"}
        given = self.model_fields_set - {"table"}
        if self.table is None and "attributes" in given:
            raise ConfigConflicts([("attributes", "needs a table, which may be that of the log")])
        if self.table is None and given:
            key = min(given)
            raise ConfigConflicts([(key, "needs a table: positives of the log have all of it")])
        if self.table is not None and needed - given:
            raise ConfigConflicts([(min(needed - given), "must be set where a table is")])
        return self


class AttributeConfig(Config):
    """What else is known of a behaviour, such as dwell time, price or tags.

    Modules that read sequences see it. It counts as known at the time of the behaviour: where it is
    known later, as dwell time is, `time` should be the end.
    """

    kind: AttributeKind
    """One id, several ids whose mean is taken, or a number."""
    table: str | None = None
    """Name in [tables] of a table of attributes of items; not set: the tables of the behaviours
    have it, each in the column that its `attributes` name."""
    column: str | None = Field(None, min_length=1)
    """Of that table; not set: the column of its name."""
    separator: str | None = Field(None, min_length=1)
    """Between several ids in a cell: kind "ids" takes all of them, kind "id" the first."""
    entity: str | None = None
    """Id space; not set: the name of the attribute, without _id at its end."""
    max_ids: MaxIds | None = None
    """Most ids of one behaviour, for kind "ids"; more are an error. The store has room for so many
    in each. Not set: 4."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        conflicts = []
        if self.kind == "number":
            for name in ("entity", "separator"):
                if getattr(self, name) is not None:
                    conflicts.append((name, "has no effect on kind = 'number'"))
        if self.kind != "ids" and self.max_ids is not None:
            conflicts.append(("max_ids", "has an effect on kind = 'ids' only"))
        if self.table is None and self.column is not None:
            conflicts.append(
                ("column", "needs a table; behaviours name their own columns in `attributes`")
            )
        if conflicts:
            raise ConfigConflicts(conflicts)
        return self

    def attribute(self, name: str) -> BehaviourAttribute:
        """The attribute of the dataset."""
        is_number = self.kind == "number"
        return BehaviourAttribute(
            name=name,
            kind=self.kind,
            entity=None if is_number else self.entity or name.removesuffix("_id"),
            max_ids=(self.max_ids or _MAX_IDS) if self.kind == "ids" else 1,
        )


def attribute_conflicts(
    attributes: Mapping[str, AttributeConfig],
    behaviours: Mapping[str, BehaviourConfig],
    tables: Mapping[str, TableConfig],
) -> Iterator[tuple[str, str]]:
    """Key and problem of everything about attributes that cannot be meant."""
    for name, config in attributes.items():
        key = f"attributes.{name}"
        if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in RESERVED_ATTRIBUTES:
            yield key, "must be a name of a-z, 0-9 and _ that is not reserved"
            continue
        entity = config.attribute(name).entity
        if entity and (not re.fullmatch("[a-z][a-z0-9_]*", entity) or entity == "request"):
            yield f"{key}.entity", "must be a name of a-z, 0-9 and _, and not 'request'"
        table = tables.get(config.table or "")
        if config.table and (table is None or table.by != "item"):
            fitting = [other for other, found in tables.items() if found.by == "item"]
            yield f"{key}.table", f"must be one of the tables with by = 'item': {fitting}"
        if not config.table and not any(name in b.attributes for b in behaviours.values()):
            yield key, "stands nowhere: name a table, or its column in behaviours.<n>.attributes"
    for name, behaviour in behaviours.items():
        for attribute in behaviour.attributes:
            key = f"behaviours.{name}.attributes.{attribute}"
            if attribute not in attributes:
                yield key, f"must be one of the attributes {sorted(attributes)}"
            elif attributes[attribute].table:
                yield key, f"has no effect: it stands in table '{attributes[attribute].table}'"
