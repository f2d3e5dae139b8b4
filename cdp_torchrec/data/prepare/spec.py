"""The contract between a converter and the preparation engine: what the staging files hold."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cdp_torchrec.data.history.behaviour_attributes import RESERVED_ATTRIBUTES, BehaviourAttribute
from cdp_torchrec.data.schema import LATEST_TIMESTAMP_MS, USER_ENTITY, Feature, Schema

# Columns that the engine reads or writes itself.
RESERVED = ("request_id", "timestamp", "label", "history_length", "history_rank")
CLICK_PROBABILITY = "click_probability"
"""Optional list of the requests: the true probability of each click (synthetic data)."""


@dataclass(frozen=True)
class DatasetSpec:
    """What the staging files mean.

    Raises:
        ValueError: the features contradict each other or use a reserved name.
    """

    name: str
    source: str
    """Where the log came from, in words."""
    features: tuple[Feature, ...]
    """Columns of the requests; must hold `item_id` (candidate, id). `user_id` (request, id, entity
    "user") may be listed and is stored in any case. Means and deviations are computed, not read."""
    test_from: int
    """Requests at or after this time are the test split; ms since the epoch."""
    category_entity: str | None = None
    """Entity of the behaviours' `category`; None: the column is not read."""
    action_entity: str | None = None
    """Entity of the behaviours' `action`; None: the column is not read."""
    attributes: tuple[BehaviourAttribute, ...] = ()
    """Further columns of the behaviours. Means and deviations are computed, not read."""
    bayes: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the true click probabilities on the test split (synthetic data only)."""

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        attributes = [attribute.name for attribute in self.attributes]
        for name in [*names, *attributes, *self.entities()]:
            if not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise ValueError(f"'{name}': names need lower-case letters, digits and '_'")
        taken = sorted(set(names) & {*RESERVED, CLICK_PROBABILITY})
        if taken:
            raise ValueError(f"feature names {taken} are reserved")
        if taken := sorted(set(attributes) & {*RESERVED_ATTRIBUTES}):
            raise ValueError(f"attribute names {taken} are reserved")
        if len(set(attributes)) != len(attributes):
            raise ValueError(f"attribute names repeat: {sorted(attributes)}")
        if "request" in self.entities():
            raise ValueError("entity name 'request' is reserved")
        if len(set(names)) != len(names):
            raise ValueError(f"feature names repeat: {sorted(names)}")
        item = next((f for f in self.features if f.name == "item_id"), None)
        if item is None or (item.level, item.kind) != ("candidate", "id"):
            raise ValueError("a feature 'item_id' of level 'candidate' and kind 'id' is required")
        user = next((f for f in self.features if f.name == "user_id"), None)
        if user and (user.level, user.kind, user.entity) != ("request", "id", USER_ENTITY):
            raise ValueError(
                f"feature 'user_id' must be of level 'request', kind 'id', entity '{USER_ENTITY}'"
            )

    @classmethod
    def of_dataset(cls, schema: Schema) -> "DatasetSpec":
        """What the files of a day that is appended mean: the same as those of the dataset.

        All of a day is for training.
        """
        return cls(
            name=schema.name,
            source=schema.source,
            features=schema.features,
            test_from=LATEST_TIMESTAMP_MS + 1,
            category_entity=schema.history.category_entity,
            action_entity=schema.history.action_entity,
            attributes=schema.history.attributes,
        )

    @property
    def item_entity(self) -> str:
        """Id space of the candidates and of the items behaved on."""
        return next(f.entity for f in self.features if f.name == "item_id") or ""

    def entities(self) -> tuple[str, ...]:
        """All id spaces, in order of first use."""
        used = [USER_ENTITY, *(f.entity for f in self.features)]
        used += [self.category_entity, self.action_entity]
        used += [attribute.entity for attribute in self.attributes]
        return tuple(dict.fromkeys(entity for entity in used if entity))

    def request_features(self) -> list[Feature]:
        """Features stored once per request, without `user_id`."""
        return [f for f in self.features if f.level == "request" and f.name != "user_id"]

    def candidate_features(self) -> list[Feature]:
        """Features with one element per candidate, `item_id` first."""
        features = [f for f in self.features if f.level == "candidate"]
        return sorted(features, key=lambda f: f.name != "item_id")

    def behaviour_columns(self) -> Iterator[tuple[str, str]]:
        """(column of the staged behaviours, its entity), user first."""
        yield "user_id", USER_ENTITY
        yield "item", self.item_entity
        if self.category_entity:
            yield "category", self.category_entity
        if self.action_entity:
            yield "action", self.action_entity
