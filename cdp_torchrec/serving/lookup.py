"""Embedding lookups in the tables of an artifact: SparseArch without TorchRec."""

# B places of the batch, L behaviours, D embedding dim, M keys of bags

from itertools import groupby
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cdp_torchrec.data.layout import FeatureLayout
from cdp_torchrec.data.model_inputs import ModelInputs
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
    # A key of single ids has one in each place, so that its sums are its rows.
    singles, sequences, bags = layout.single_features, layout.behaviour_features, layout.bags
    behaviours = {
        slot: len(index.item_id)
        for slot, index in (("gated", dense.gated), ("recent", dense.recent))
        if index is not None
    }
    lookups = [Lookup(f.table, rows[f.key].values, num_places) for f in singles]
    lookups += [Lookup(f.table, rows[f.key].values, behaviours[f.slot]) for f in sequences]
    for table, of_table in groupby(bags, attrgetter("table")):
        joined = np.concatenate([rows[f.key].values for f in of_table])
        lookups.append(Lookup(table, joined, len(joined)))
    found = tables.read(lookups)
    sizes = [len(singles) * num_places, *(behaviours[f.slot] for f in sequences)]
    of_singles, *of_sequences, in_bags = found.split_with_sizes([*sizes, len(found) - sum(sizes)])
    embeddings = {f.key: part for f, part in zip(sequences, of_sequences, strict=True)}
    for features, parts in (
        (singles, of_singles.view(len(singles), num_places, -1)),
        (bags, _sums(in_bags, dense.bag_lengths)),
    ):
        embeddings |= {f.key: part for f, part in zip(features, parts.unbind(), strict=True)}
    return embeddings


def _sums(in_bags: Tensor, lengths: Tensor) -> Tensor:
    """Sums of the bags of M keys, [M, B, D]; 0 behind the last bag of each.

    Args:
        in_bags: embeddings of all bags, one after the other.
        lengths: of the bags, float [B, M].
    """
    of_keys = lengths.numpy().T.astype(np.int64, order="C")
    starts = of_keys.cumsum() - of_keys.reshape(-1)
    places = np.arange(len(in_bags))  # torch's own take twice as long
    sums = functional.embedding_bag(
        torch.from_numpy(places), in_bags, torch.from_numpy(starts), mode="sum"
    )
    return sums.view(*of_keys.shape, in_bags.shape[1])
