"""Ids for a benchmark of sharding plans: the dataset's bags, in tables of any size."""

from collections.abc import Mapping, Sequence

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.layout import FeatureLayout


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
