"""The counts of steps that FBGEMM keeps for the optimizers in its backward passes."""

from collections.abc import Iterator
from contextlib import contextmanager

from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection


@contextmanager
def kept_step_counts(model: nn.Module) -> Iterator[None]:
    """Scoring inside does not count as steps.

    FBGEMM counts every forward pass, and Adam corrects its moments by that count: after a
    validation it would go on as if as many steps had been done as batches were scored.

    Args:
        model: whose sharded tables are looked up inside.
    """
    kernels = list(_fused_kernels(model))
    before = [(kernel.iter.clone(), kernel.iter_cpu.clone()) for kernel in kernels]
    yield
    for kernel, (steps, steps_on_cpu) in zip(kernels, before, strict=True):
        kernel.iter.copy_(steps)
        kernel.iter_cpu.copy_(steps_on_cpu)


def _fused_kernels(model: nn.Module) -> Iterator[SplitTableBatchedEmbeddingBagsCodegen]:
    for collection in model.modules():
        if isinstance(collection, ShardedEmbeddingBagCollection | ShardedEmbeddingCollection):
            # The lookups are in a plain list, out of sight of modules().
            for lookup in collection._lookups:
                for kernel in lookup.modules():
                    if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen):
                        yield kernel
