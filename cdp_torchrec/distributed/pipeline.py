"""The train pipeline: what the GPU does for the next batches while the model works on this one."""

from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import (
    PrefetchTrainPipelineSparseDist,
    TrainPipelineSparseDist,
)
from torchrec.optim.keyed import KeyedOptimizer


def train_pipeline(
    model: DistributedModelParallel,
    optimizer: KeyedOptimizer,
    device: torch.device,
    *,
    prefetch: bool,
) -> TrainPipelineSparseDist:
    """A pipeline for the next stretch of training; detach it before the model is used otherwise.

    Args:
        model: the sharded model.
        optimizer: all of its optimizers.
        device: where this rank computes.
        prefetch: also fill the caches of fused_uvm_caching tables one batch ahead.
    """
    if not prefetch:
        return TrainPipelineSparseDist(model, optimizer, device)
    _forget_last_pipeline(model)
    return _FencedPrefetch(model, optimizer, device)


class _FencedPrefetch(PrefetchTrainPipelineSparseDist):
    """TorchRec's prefetching pipeline without its race between two streams.

    It starts to receive the ids of the next batch while those of the last one are still read for
    prefetching, and memory that is still in use may be given out again (TorchRec's pull request
    4191).
    """

    def start_sparse_data_dist(self, batch: Any, context: Any) -> None:
        """Receive ids only after the running prefetch."""
        self._wait_for_prefetch()
        super().start_sparse_data_dist(batch, context)

    def _start_sparse_data_dist(self, batch: Any) -> None:
        """Its name in TorchRec 1.6."""
        self._wait_for_prefetch()
        super()._start_sparse_data_dist(batch)

    def _wait_for_prefetch(self) -> None:
        if self._data_dist_stream is not None and self._prefetch_stream is not None:
            self._data_dist_stream.wait_stream(self._prefetch_stream)


def _forget_last_pipeline(model: nn.Module) -> None:
    """Make caches ready for another pipeline.

    FBGEMM locks the rows of a batch in the cache until its backward pass, and an evaluation has
    none: its rows would stay locked. It also keeps waiting for the stream that prefetched first,
    which is not that of the new pipeline.
    """
    for collection in model.modules():
        if not isinstance(collection, ShardedEmbeddingBagCollection | ShardedEmbeddingCollection):
            continue
        # The lookups are in a plain list, out of sight of modules().
        for lookup in collection._lookups:
            for kernel in lookup.modules():
                if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen):
                    kernel.get_buffer("lxu_cache_locking_counter").zero_()
                    kernel.prefetch_stream = None
