"""Single embeddings from tables with dense gradients on a CPU, where FBGEMM pools them instead."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.distributed.batched_embedding_kernel import BatchedDenseEmbedding
from torchrec.distributed.embedding import ShardedEmbeddingCollection


def look_up_one_by_one(model: nn.Module, device: torch.device) -> None:
    """Make the dense kernels of sharded EmbeddingCollections look every id up by itself.

    FBGEMM's dense CPU kernel sums over bags even if it is told not to pool; all other kernels and
    devices are right, and left as they are.

    Args:
        model: the sharded model, changed in place.
        device: where it computes.
    """
    if device.type != "cpu":
        return
    for collection in model.modules():
        if not isinstance(collection, ShardedEmbeddingCollection):
            continue
        # The lookups are in a plain list, out of sight of modules().
        for lookup in collection._lookups:
            for kernel in lookup.modules():
                if isinstance(kernel, BatchedDenseEmbedding):
                    kernel.emb_module.forward = partial(_look_up, kernel)


def _look_up(kernel: BatchedDenseEmbedding, indices: Tensor, offsets: Tensor) -> Tensor:
    """Embeddings of all ids, [L, D].

    Args:
        kernel: its tables lie one after the other in one flat parameter.
        indices: ids, feature after feature, [L].
        offsets: bags of the features, all features with equally many.
    """
    shapes = kernel.emb_module.embedding_specs
    flat = kernel.emb_module.weights.split([rows * width for rows, width in shapes])
    tables = [part.view(shape) for part, shape in zip(flat, shapes, strict=True)]
    table_of_feature = kernel._feature_table_map
    bags = (len(offsets) - 1) // len(table_of_feature)
    ids = indices.tensor_split(offsets[bags:-1:bags])
    parts = zip(ids, table_of_feature, strict=True)
    return torch.cat([functional.embedding(part, tables[table]) for part, table in parts])
