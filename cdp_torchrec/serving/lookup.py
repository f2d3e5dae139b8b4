"""Embedding lookups of a batch in the tables of an artifact: SparseArch without TorchRec."""

# B places of the batch, L behaviours, D embedding dim

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
    embeddings = _look_up(layout.pooled_features, tables, batch.sparse)
    if batch.sequence is not None:
        embeddings |= _look_up(layout.sequence_features, tables, batch.sequence)
    for slot, index in (("gated", batch.gated), ("recent", batch.recent)):
        if index is not None:
            for key in (f.key for f in layout.features if f.slot == slot):
                # Behaviours of the sequences that index_sequences adds.
                missing = len(index.item_id) - len(embeddings[key])
                embeddings[key] = functional.pad(embeddings[key], (0, 0, 0, missing))
    return embeddings


def _look_up(
    features: tuple[SparseFeature, ...], tables: EmbeddingTables, ids: KeyedJaggedTensor
) -> dict[str, Tensor]:
    lengths = ids.lengths().view(len(features), -1)
    ends = lengths.sum(dim=1).cumsum(dim=0).tolist()
    rows = np.split(ids.values().numpy(), ends[:-1])
    found = tables.read([(f.table, r) for f, r in zip(features, rows, strict=True)])
    parts = found.split([len(r) for r in rows])
    return {
        feature.key: part if feature.is_sequence else _sum(part, length)
        for feature, part, length in zip(features, parts, lengths, strict=True)
    }


def _sum(values: Tensor, lengths: Tensor) -> Tensor:
    return torch.segment_reduce(values, "sum", lengths=lengths, initial=0.0)
