"""Embedding lookups of a batch in the tables of an artifact: SparseArch without TorchRec."""

# B places of the batch, L behaviours, D embedding dim

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.layout import FeatureLayout, SparseFeature
from cdp_torchrec.serving.tables import EmbeddingTables


def look_up(layout: FeatureLayout, tables: EmbeddingTables, batch: Batch) -> dict[str, Tensor]:
    """Sum of the embeddings of each bag [B, D], and of each behaviour [L, D], by key.

    Args:
        layout: tables and keys.
        tables: the embeddings.
        batch: sequences in one block.
    """
    found = _rows(layout.pooled_features, tables, batch.sparse)
    if batch.sequence is not None:
        found += _rows(layout.sequence_features, tables, batch.sequence)
    embeddings = _embeddings(tables, found)
    for slot, index in (("gated", batch.gated), ("recent", batch.recent)):
        if index is not None:
            for key in (f.key for f in layout.features if f.slot == slot):
                # Behaviours of the sequences that index_sequences adds.
                missing = len(index.item_id) - len(embeddings[key])
                embeddings[key] = functional.pad(embeddings[key], (0, 0, 0, missing))
    return embeddings


class _Lookup(NamedTuple):
    feature: SparseFeature
    rows: np.ndarray
    lengths: Tensor
    """Rows at each of B places."""


def _rows(
    features: tuple[SparseFeature, ...], tables: EmbeddingTables, ids: KeyedJaggedTensor
) -> list[_Lookup]:
    lengths = ids.lengths().view(len(features), -1)
    ends = lengths.sum(dim=1).cumsum(dim=0).tolist()
    values = np.split(ids.values().numpy(), ends[:-1])
    rows = [tables.rows(f.table, v) for f, v in zip(features, values, strict=True)]
    return [_Lookup(*found) for found in zip(features, rows, lengths, strict=True)]


def _embeddings(tables: EmbeddingTables, lookups: list[_Lookup]) -> dict[str, Tensor]:
    """By key; all bags are read, and summed, in one go."""
    bags = [lookup for lookup in lookups if not lookup.feature.is_sequence]
    sequences = [lookup for lookup in lookups if lookup.feature.is_sequence]
    found = tables.read([(of.feature.table, of.rows) for of in bags + sequences])
    lengths = torch.cat([bag.lengths for bag in bags])
    in_bags, *values = found.split(
        [sum(len(b.rows) for b in bags), *(len(s.rows) for s in sequences)]
    )
    sums = torch.segment_reduce(in_bags, "sum", lengths=lengths, initial=0.0)
    parts = sums.view(len(bags), -1, sums.shape[1])
    embeddings = {bag.feature.key: part for bag, part in zip(bags, parts, strict=True)}
    return embeddings | {
        sequence.feature.key: part for sequence, part in zip(sequences, values, strict=True)
    }
