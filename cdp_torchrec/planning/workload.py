"""What is to be sharded and how often it is looked up: the model of a configuration and its data.

A dataset directory may hold nothing but a schema.toml, for a log that is not there yet.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.config import VocabularyConfig
from cdp_torchrec.data.layout import (
    POOL_KEY,
    FeatureLayout,
    SparseFeature,
    declare_layout,
)
from cdp_torchrec.data.loader import Share
from cdp_torchrec.data.pooling_factors import measure_pooling_factors
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.schema import Schema
from cdp_torchrec.data.tables.embedding_table import Table
from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.optimizers import apply_sparse_optimizer
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.tables import EmbeddingTable, find_tables
from cdp_torchrec.experiment import open_data
from cdp_torchrec.model.config import ModelConfig
from cdp_torchrec.model.ranking_model import RankingModel
from cdp_torchrec.model.train_task import TrainTask
from cdp_torchrec.planning.case import PlanCase
from cdp_torchrec.planning.config import PlanningExperimentConfig
from cdp_torchrec.planning.table_rows import resize_tables, wrong_rows

_HISTORY_KEY = re.compile(
    rf"{POOL_KEY}_((daypart_|part_)?\d+|whole)|(gated|recent)_(item|category|action|attribute_\w+)"
)


@dataclass(frozen=True)
class Workload:
    """What the ranks have to hold and to compute."""

    layout: FeatureLayout
    model: ModelConfig
    batch_size: int
    """Impressions per rank and step."""
    pooling_factors: Mapping[str, float]
    """Mean number of ids per impression, by key."""
    impressions_per_request: float
    pooling_source: str
    """Where the pooling factors come from, in words."""

    @property
    def name(self) -> str:
        """What the output calls the model."""
        return self.model.interest.kind

    @cached_property
    def tables(self) -> list[EmbeddingTable]:
        """All tables, by name."""
        with torch.device("meta"):
            return find_tables(RankingModel(self.layout, self.model))

    @property
    def identity(self) -> Mapping[str, Any]:
        """What distinguishes it from other models and data."""
        return {
            "layout": repr(self.layout),
            "model": self.model.model_dump(mode="json"),
            "impressions_per_request": self.impressions_per_request,
        }

    def problem(self, case: PlanCase) -> PlanProblem:
        """What a case needs a plan for; its model takes no memory."""
        with torch.device("meta"):
            task = TrainTask(RankingModel(self.layout, self.model))
        device = torch.device(case.hardware.device)
        assert isinstance(case.optimizer, SparseOptimizerConfig)
        apply_sparse_optimizer(task.model.sparse_arch, case.optimizer, device)
        return case.problem(task, self.batch_size, self.pooling_factors)


def read_workload(config: PlanningExperimentConfig) -> Workload:
    """The workload of a configuration.

    Raises:
        ConfigError: rows or pooling factors are unknown or missing.
        DatasetError: there is no readable schema, or the dataset is damaged.
    """
    reader = DatasetReader(config.data)
    schema = reader.schema
    has_data = (config.data.dir / "vocabulary").is_dir()
    layout = _layout(config, reader, has_data=has_data)
    problems = wrong_rows(layout, config.planning.rows, key="planning.rows")
    problems += _unknown_keys(config, layout)
    if problems:
        raise ConfigError.of(problems)
    layout = resize_tables(layout, config.planning.rows)
    declared = config.planning.pooling_factors
    found = _measured(config, schema) if has_data else _declared(config, layout, schema)
    split = schema.splits["train"]
    return Workload(
        layout=layout,
        model=config.model,
        batch_size=config.planning.batch_size,
        pooling_factors={
            f.key: declared.get(f.key, found.get(f.key, 0.0)) for f in layout.features
        },
        impressions_per_request=max(1.0, split.impressions / max(1, split.requests)),
        pooling_source=f"measured on {config.data.dir}" if has_data else "declared",
    )


def _layout(
    config: PlanningExperimentConfig, reader: DatasetReader, *, has_data: bool
) -> FeatureLayout:
    history, counts = config.model.interest.history, config.model.interaction.history_counts
    if has_data:
        return reader.layout(history, history_counts=counts)
    return declare_layout(
        reader.schema,
        lambda entity: _declared_table(config, reader.schema, entity),
        history=history,
        counts=config.data.history.counts if counts else None,
        dayparts=config.data.history.dayparts,
    )


def _declared_table(config: PlanningExperimentConfig, schema: Schema, entity: str) -> Table:
    num_ids = schema.entities[entity].num_ids
    vocabulary = config.data.vocabulary.get(entity, VocabularyConfig())
    return Table(
        entity,
        num_oov_rows=vocabulary.num_oov_rows,
        num_kept=num_ids,
        num_ids=num_ids,
        managed_collision=vocabulary.managed_collision,
        hash_bucket_size=vocabulary.hash_bucket_size,
    )


def _unknown_keys(config: PlanningExperimentConfig, layout: FeatureLayout) -> list[str]:
    keys = [feature.key for feature in layout.features]
    return [
        f"planning.pooling_factors.{key}: no lookup has this key; there are {', '.join(keys)}"
        for key in config.planning.pooling_factors
        if key not in keys and not _HISTORY_KEY.fullmatch(key)
    ]


def _measured(config: PlanningExperimentConfig, schema: Schema) -> Mapping[str, float]:
    held = (1 - config.data.validation_fraction) * schema.splits["train"].impressions
    batch_size = max(1, min(config.planning.batch_size, int(held / 2)))
    data = open_data(config, share=Share(0, 1), global_batch_size=batch_size)
    return measure_pooling_factors(data.train)


def _declared(
    config: PlanningExperimentConfig, layout: FeatureLayout, schema: Schema
) -> Mapping[str, float]:
    """What the schema says by itself: one id per candidate, or one per request.

    Raises:
        ConfigError: names the keys that only the log, or the user, knows.
    """
    split = schema.splits["train"]
    single = {"candidate": 1.0, "request": split.requests / max(1, split.impressions)}
    factors = {f.key: single[f.slot] for f in layout.features if _is_single(f)}
    missing = [
        f.key
        for f in layout.features
        if f.key not in factors and f.key not in config.planning.pooling_factors
    ]
    if missing:
        raise ConfigError.of(
            f"planning.pooling_factors.{key}: required, because {config.data.dir} holds a schema "
            "but no log to measure it on: the mean number of ids per impression"
            for key in missing
        )
    return factors


def _is_single(feature: SparseFeature) -> bool:
    return not (feature.is_history or feature.is_bag)
