"""Which embedding tables and KJT keys a dataset gives a model: the contract of reader and model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from cdp_torchrec.data.config import VocabularyConfig
from cdp_torchrec.data.history.behaviour_attributes import BehaviourAttribute
from cdp_torchrec.data.history.lookup import HistoryCounts, HistoryLookup
from cdp_torchrec.data.schema import USER_ENTITY, DatasetError, Feature, Role, Schema
from cdp_torchrec.data.tables.embedding_table import Table, stored_table
from cdp_torchrec.data.tables.own_rows import OwnRows

Slot = Literal[
    "candidate", "request", "pool", "daypart", "part", "whole", "gated", "recent", "stranger"
]

POOL_KEY = "history_item_id"
DAYPART_KEY = f"{POOL_KEY}_daypart"
PART_KEY = f"{POOL_KEY}_part"
WHOLE_KEY = f"{POOL_KEY}_whole"


@dataclass(frozen=True)
class SparseFeature:
    """One key of the batch's KeyedJaggedTensor."""

    key: str
    table: str
    role: Role | Literal["history"]
    slot: Slot
    """Whose ids stand at place b of this key: those of impression b, of request b, or of history b,
    pooled, the same by the time of day, a random part of it pooled, all behaviours of request b
    pooled, as a sequence gated by category, as the sequence of all recent behaviours, or of those
    of another user."""
    is_bag: bool
    """Zero or more ids whose mean is taken, instead of exactly one id or a sequence."""

    @property
    def is_history(self) -> bool:
        """Whether the ids are those of behaviours."""
        return self.role == "history"

    @property
    def is_sequence(self) -> bool:
        """Whether each id keeps an embedding of its own."""
        return self.slot in ("gated", "recent", "stranger")


@dataclass(frozen=True)
class FeatureLayout:
    """Tables, KJT keys in their order, and numbers in their order."""

    tables: Mapping[str, Table]
    features: tuple[SparseFeature, ...]
    numbers: tuple[Feature, ...]
    history: HistoryLookup
    """Forms in which the history is looked up."""
    category_key: str | None
    """Candidate feature that holds the category of the gate."""
    domain_key: str | None
    """Request feature that holds the domain; None where the model does not ask for it, or the log
    has none."""
    counts: HistoryCounts | None
    """By what the tower learns the counts of the gated history; None: it does not."""
    num_users: int
    """Largest user code that a training knows, of whatever day it is measured on."""
    num_domains: int = 0
    """Codes that a domain may have, with that of a missing one; 0 without domains. Those before any
    day was appended: networks of domains do not grow as tables do."""
    dayparts: int = 1
    """Equal parts of the day by which behaviours are told apart."""
    attributes: tuple[BehaviourAttribute, ...] = ()
    """What modules that read sequences see of a behaviour beside item, category and action."""

    @property
    def has_actions(self) -> bool:
        """Whether behaviours have an action type."""
        return any(f.key == f"{f.slot}_action" for f in self.features if f.is_sequence)

    @property
    def num_behaviour_values(self) -> int:
        """Columns of SequenceIndex.attributes; 0 where there is nothing of it."""
        of_attributes = sum(attribute.num_values for attribute in self.attributes)
        return of_attributes + (self.dayparts if self.dayparts > 1 else 0)

    @cached_property
    def pooled_features(self) -> tuple[SparseFeature, ...]:
        """Features of the tables that only pooled lookups read."""
        return tuple(f for f in self.features if f.table not in self._sequence_tables)

    @cached_property
    def sequence_features(self) -> tuple[SparseFeature, ...]:
        """All features of the tables that a sequence reads: one table is in one collection."""
        return tuple(f for f in self.features if f.table in self._sequence_tables)

    @cached_property
    def _sequence_tables(self) -> set[str]:
        return {feature.table for feature in self.features if feature.is_sequence}

    @cached_property
    def features_of_tables(self) -> Mapping[str, list[SparseFeature]]:
        """All features by the table that they read."""
        by_table: dict[str, list[SparseFeature]] = {}
        for feature in self.features:
            by_table.setdefault(feature.table, []).append(feature)
        return by_table

    @cached_property
    def single_features(self) -> tuple[SparseFeature, ...]:
        """Features of exactly one id."""
        return tuple(f for f in self.features if not (f.is_bag or f.is_sequence))

    @cached_property
    def behaviour_features(self) -> tuple[SparseFeature, ...]:
        """Features of which each id keeps an embedding of its own."""
        return tuple(feature for feature in self.features if feature.is_sequence)

    @cached_property
    def own_rows(self) -> OwnRows:
        """Rows of few ids of all features, in their order."""
        return OwnRows([self.tables[feature.table] for feature in self.features])

    @cached_property
    def bags(self) -> tuple[SparseFeature, ...]:
        """Features whose bags are divided by their lengths, in the order of Batch.bag_lengths."""
        return tuple(feature for feature in self.features if feature.is_bag)


def build_layout(
    dataset: Path,
    schema: Schema,
    *,
    vocabulary: Mapping[str, VocabularyConfig],
    history: HistoryLookup,
    counts: HistoryCounts | None,
    dayparts: int = 1,
) -> FeatureLayout:
    """Tables and keys of a dataset for a model that reads the history in some forms.

    Raises:
        DatasetError: `vocabulary` names an entity that the dataset does not have, or a
            vocabulary file is missing.
    """
    unknown = sorted(set(vocabulary) - set(schema.entities))
    if unknown:
        raise DatasetError(
            f"data.vocabulary names {unknown}, but {dataset} has the entities "
            f"{sorted(schema.entities)}"
        )
    return declare_layout(
        schema,
        lambda entity: stored_table(
            dataset, schema, entity, vocabulary.get(entity, VocabularyConfig())
        ),
        history=history,
        counts=counts,
        dayparts=dayparts,
    )


def declare_layout(
    schema: Schema,
    make_table: Callable[[str], Table],
    *,
    history: HistoryLookup,
    counts: HistoryCounts | None,
    dayparts: int = 1,
) -> FeatureLayout:
    """Tables and keys of a schema, whatever decides on the rows of a table.

    Args:
        schema: features and entities.
        make_table: table of an entity.
        history: forms of the history that the model reads.
        counts: as in FeatureLayout.
        dayparts: as in FeatureLayout.
    """
    features = [
        SparseFeature(
            key=feature.name,
            table=feature.entity,
            role=feature.role,
            slot="candidate" if feature.level == "candidate" else "request",
            is_bag=feature.kind == "ids",
        )
        for feature in schema.features
        if feature.entity is not None
    ]
    item = schema.history.item_entity
    features += _pooled_features(POOL_KEY, history.num_pool_segments, item, slot="pool")
    if history.pool_segments is not None and dayparts > 1:
        features += _pooled_features(DAYPART_KEY, dayparts, item, slot="daypart")
    if history.part:
        features += _pooled_features(PART_KEY, dayparts, item, slot="part")
    if history.whole:
        features.append(_pooled_feature(WHOLE_KEY, item, slot="whole"))
    if history.gated:
        features += _behaviour_features(schema, "gated")
    if history.recent:
        features += _behaviour_features(schema, "recent")
    if history.stranger:
        features += _behaviour_features(schema, "stranger")
    entities = dict.fromkeys(feature.table for feature in features)
    domain_key = schema.domain_feature() if history.domain else None
    domain = None if domain_key is None else schema.feature(domain_key).entity
    user = schema.trained_entities.get(USER_ENTITY)
    return FeatureLayout(
        tables={entity: make_table(entity) for entity in entities},
        features=tuple(features),
        numbers=tuple(f for f in schema.features if f.kind == "number"),
        history=history,
        category_key=schema.gate_feature(),
        domain_key=domain_key,
        counts=counts,
        num_users=0 if user is None else user.num_ids,
        num_domains=0 if domain is None else schema.first_entities[domain].num_ids + 1,
        dayparts=dayparts,
        attributes=schema.history.attributes,
    )


def _pooled_features(key: str, count: int, entity: str, *, slot: Slot) -> list[SparseFeature]:
    return [_pooled_feature(f"{key}_{number}", entity, slot=slot) for number in range(count)]


def _pooled_feature(key: str, entity: str, *, slot: Slot) -> SparseFeature:
    return SparseFeature(key, entity, role="history", slot=slot, is_bag=True)


def _behaviour_features(schema: Schema, slot: Slot) -> list[SparseFeature]:
    return [
        SparseFeature(f"{slot}_{name}", entity, role="history", slot=slot, is_bag=False)
        for name, entity in schema.history.entities.items()
    ] + [
        SparseFeature(f"{slot}_{column}", a.entity, role="history", slot=slot, is_bag=False)
        for a in schema.history.attributes
        if a.entity is not None
        for column in a.columns
    ]
