"""Ids for a benchmark of sharding plans: the dataset's bags, in tables of any size."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.layout import FeatureLayout


def resize_tables(layout: FeatureLayout, rows: Mapping[str, int]) -> FeatureLayout:
    """The layout with other numbers of rows.

    Args:
        layout: of a dataset.
        rows: by entity; the others stay as they are.

    Raises:
        ConfigError: no such entity, or too few rows for its out-of-vocabulary ids.
    """
    problems = []
    tables = dict(layout.tables)
    for entity, num_embeddings in rows.items():
        if entity not in tables:
            problems.append(
                f"benchmark.rows.{entity}: the model has no such table; it has {', '.join(tables)}"
            )
            continue
        if tables[entity].managed_collision is not None:
            problems.append(f"benchmark.rows.{entity}: managed_collision.zch_size is its size")
            continue
        num_kept = num_embeddings - 1 - tables[entity].num_oov_rows
        if num_kept < 1:
            problems.append(
                f"benchmark.rows.{entity} = {num_embeddings}: expected at least "
                f"{2 + tables[entity].num_oov_rows}"
            )
        tables[entity] = replace(tables[entity], num_kept=num_kept)
    if problems:
        raise ConfigError.of(problems)
    return replace(layout, tables=tables)


def draw_ids(
    batches: Sequence[Batch], layout: FeatureLayout, rows: Mapping[str, int], *, seed: int
) -> list[KeyedJaggedTensor]:
    """The ids of batches under all keys, pooled ones and those of sequences.

    Bags keep their lengths. In resized tables their ids are drawn uniformly, which no cache helps:
    ids of real logs repeat and are faster to look up.

    Args:
        batches: of the dataset.
        layout: with resized tables.
        rows: of the resized tables, by entity.
        seed: of the draws; ranks take different ones.
    """
    generator = torch.Generator().manual_seed(seed)
    entity_of = {feature.key: feature.table for feature in layout.features}
    drawn = []
    for batch in batches:
        some = [jagged for jagged in (batch.sparse, batch.sequence) if jagged is not None]
        ids = KeyedJaggedTensor.concat(some)
        values = [
            torch.randint(rows[entity_of[key]], (count,), generator=generator).to(ids.device())
            if entity_of[key] in rows
            else ids[key].values()
            for key, count in zip(ids.keys(), ids.length_per_key(), strict=True)
        ]
        drawn.append(KeyedJaggedTensor(ids.keys(), torch.cat(values), lengths=ids.lengths()))
    return drawn
