"""Embedding lookups in the tables of an artifact: SparseArch without TorchRec."""

# B places of the batch, L behaviours, D embedding dim

from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from cdp_torchrec.data.assemble import ModelInputs
from cdp_torchrec.data.layout import FeatureLayout
from cdp_torchrec.serving.tables import EmbeddingTables, Lookup


def look_up(
    layout: FeatureLayout, tables: EmbeddingTables, inputs: ModelInputs
) -> dict[str, Tensor]:
    """Sum of the embeddings of each bag [B, D], and of each behaviour [L, D], by key.

    All rows are read at once. Places behind the last id or bag are 0, and so are behaviours of the
    sequences that index_sequences adds.

    Args:
        layout: tables and keys.
        tables: the embeddings.
        inputs: what the model reads, its sequences in one block.
    """
    dense, rows = inputs.dense, inputs.rows
    num_places = len(dense.key)
    lengths = {
        slot: len(index.item_id)
        for slot, index in (("gated", dense.gated), ("recent", dense.recent))
        if index is not None
    }
    bags = [f for f in layout.features if f.is_bag]
    others = [f for f in layout.features if not f.is_bag]
    # A key of single ids has one in each place, so that its sums are its rows.
    lookups = [
        Lookup(f.table, rows[f.key].values, lengths.get(f.slot, num_places)) for f in others
    ] + [Lookup(f.table, rows[f.key].values, len(rows[f.key].values)) for f in bags]
    found = tables.read(lookups)
    ends = accumulate((lookup.num_places for lookup in lookups[: len(others)]), initial=0)
    embeddings = {
        f.key: found[start:stop] for f, (start, stop) in zip(others, pairwise(ends), strict=True)
    }
    if bags:
        in_bags = found[sum(lookup.num_places for lookup in lookups[: len(others)]) :]
        of_bags = np.zeros((len(bags), num_places), dtype=np.int64)
        for places, feature in zip(of_bags, bags, strict=True):
            own = rows[feature.key].lengths
            places[: len(own)] = own
        sums = torch.segment_reduce(
            in_bags, "sum", lengths=torch.from_numpy(of_bags.reshape(-1)), initial=0.0
        ).view(len(bags), num_places, -1)
        embeddings |= {f.key: part for f, part in zip(bags, sums.unbind(), strict=True)}
    return embeddings
