"""How many ids would collide in hash tables of several sizes: figures of the summary."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cdp_torchrec.data.schema import Schema
from cdp_torchrec.data.summary import Figure, Summary
from cdp_torchrec.data.tables.id_hash import digests, measure_collisions
from cdp_torchrec.data.tables.stored_vocabulary import stored_ids, training_counts

_MULTIPLES = (0.5, 1, 2, 4, 8)
_LEAST_IDS = 1000
"""Smaller vocabularies need no hash."""
_FIGURES = {"collisions_of_ids": "ids", "collisions_of_occurrences": "occurrences"}
HASH_TITLE = (
    "share of the ids, and of the occurrences in training, that share a row with another id where "
    "a hash (data.vocabulary.<entity>.hash_bucket_size, hash_seed = 0) gives them rows"
)


def measure_hashes(dataset: Path, schema: Schema) -> dict[str, dict[str, Figure]]:
    """Collisions of each large vocabulary at several numbers of rows, at hash_seed = 0.

    Raises:
        DatasetError: a vocabulary is missing or damaged.
    """
    figures: dict[str, dict[str, Figure]] = {name: {} for name in _FIGURES}
    for entity, vocabulary in schema.entities.items():
        if vocabulary.num_ids < _LEAST_IDS:
            continue
        raw = stored_ids(dataset, schema, entity)
        hashes = digests((text for chunk in raw.iterchunks() for text in chunk.to_pylist()), 0)
        counts = training_counts(dataset, schema, entity)
        for multiple in _MULTIPLES:
            rows = int(multiple * vocabulary.num_ids)
            found = measure_collisions(hashes % np.uint64(rows), counts)
            for name, share in _FIGURES.items():
                figure = Figure(getattr(found, share), rows)
                figures[name][f"{entity} x{multiple}"] = figure
    return {name: found for name, found in figures.items() if found}


def hash_rows(schema: Schema, summary: Summary) -> list[list[str]]:
    """Cells of a table of these figures; none where no vocabulary is large."""
    titles = [f"{multiple} rows per id" for multiple in _MULTIPLES]
    rows = list(_rows(schema, summary))
    return [["entity", "ids", *titles], *rows] if rows else []


def _rows(schema: Schema, summary: Summary) -> Iterator[list[str]]:
    ids, occurrences = (summary.figures.get(name, {}) for name in _FIGURES)
    for entity, vocabulary in schema.entities.items():
        names = [f"{entity} x{multiple}" for multiple in _MULTIPLES]
        if names[0] in ids:
            shares = [f"{ids[n].value:.1%}, {occurrences[n].value:.1%}" for n in names]
            yield [entity, f"{vocabulary.num_ids:,}", *shares]
