"""How often ids share a row of the tables that they fall on by a hash, in words."""

from collections.abc import Mapping
from pathlib import Path

from cdp_torchrec.data.schema import Schema
from cdp_torchrec.data.tables.embedding_table import Table
from cdp_torchrec.data.tables.id_hash import measure_collisions
from cdp_torchrec.data.tables.stored_vocabulary import training_counts


def describe_collisions(dataset: Path, schema: Schema, tables: Mapping[str, Table]) -> list[str]:
    """A line for each table with a hash.

    Args:
        dataset: dataset directory.
        schema: of the dataset, with the days that are read.
        tables: by entity.

    Raises:
        DatasetError: a vocabulary is missing or damaged.
    """
    lines = []
    for entity, table in tables.items():
        if table.hash_bucket_size is None:
            continue
        found = measure_collisions(table.buckets, training_counts(dataset, schema, entity))
        lines.append(
            f"data.vocabulary.{entity}.hash_bucket_size = {table.hash_bucket_size}: of "
            f"{len(table.buckets):,} ids {found.ids:.1%} share a row with another one, and "
            f"{found.occurrences:.1%} of the occurrences in training are of these"
        )
    return lines
