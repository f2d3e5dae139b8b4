"""What the dense part of a model costs: every operation of a step, without computing any.

Forward and backward run on fake tensors, which have shapes but no memory. Each operation takes the
longer of its arithmetic and its memory traffic, and no less than the launch of a kernel.
"""

# B impressions, R requests, D embedding dim, K recency segments, L behaviours

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.history.sequence_index import SequenceColumns, SequenceIndex, index_sequences
from cdp_torchrec.distributed.plans.hardware import GB, HardwareConfig
from cdp_torchrec.distributed.plans.tables import num_dense_parameters
from cdp_torchrec.model.ranking_model import RankingModel
from cdp_torchrec.model.train_task import TrainTask
from cdp_torchrec.planning.workload import Workload

_MOST_COUNTED = 65_536
"""Impressions; the work of more is in proportion, and needs no batch of that size."""
_BUCKET_BYTES = 25 * 2**20
_ADAM_COPIES = 7
"""Reads and writes of each dense parameter in Adam's update, in float32."""

_COUNTED_AS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        torch.ops.aten._scaled_dot_product_flash_attention
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ),
}
"""Operators that PyTorch has no count of, and others with the same arithmetic."""


@dataclass(frozen=True)
class Operation:
    """One kernel."""

    flops: int
    num_bytes: int


@dataclass(frozen=True)
class DenseCost:
    """The dense part of a step, before it meets any hardware."""

    operations: tuple[Operation, ...]
    """Forward and backward of one rank's batch."""
    num_parameters: int

    @property
    def flops(self) -> int:
        """Arithmetic of matrix products, which dominates."""
        return sum(operation.flops for operation in self.operations)

    @property
    def num_bytes(self) -> int:
        """Memory traffic."""
        return sum(operation.num_bytes for operation in self.operations)

    def compute_ms(self, hardware: HardwareConfig) -> float:
        """Time of forward, backward and the dense optimizer on one rank."""
        gpu = hardware.device == "cuda"
        bandwidth = hardware.device_bandwidth_gb_s if gpu else hardware.host_bandwidth_gb_s
        assert bandwidth is not None
        floor = hardware.fixed_cost("kernel_us") / 1e3
        update = Operation(0, 4 * _ADAM_COPIES * self.num_parameters)
        return sum(
            max(
                1e3 * operation.flops / (hardware.matmul_tflops * 1e12),
                1e3 * operation.num_bytes / (bandwidth * GB),
                floor,
            )
            for operation in (*self.operations, update)
        )

    def scaled(self, factor: float) -> "DenseCost":
        """Of a batch that is `factor` times as large; weights are taken to grow along."""
        operations = (
            Operation(round(factor * o.flops), round(factor * o.num_bytes)) for o in self.operations
        )
        return DenseCost(tuple(operations), self.num_parameters)

    def all_reduce_ms(self, hardware: HardwareConfig, world_size: int) -> float:
        """Time to average the dense gradients in a ring over all ranks, in DDP's buckets."""
        if world_size == 1:
            return 0.0
        here = min(world_size, hardware.ranks_per_node)
        link = hardware.intra_node_gb_s
        if world_size > here:
            link = min(link, hardware.inter_node_gb_s * here)
        num_bytes = 4 * self.num_parameters
        sent = 2 * (world_size - 1) / world_size * num_bytes
        buckets = math.ceil(num_bytes / _BUCKET_BYTES)
        fixed = buckets * hardware.collective_ms(2 * (world_size - 1))
        return 1e3 * sent / (link * GB) + fixed


def count_dense(workload: Workload) -> DenseCost:
    """Operations of a step of one rank."""
    if workload.batch_size > _MOST_COUNTED:
        counted = count_dense(replace(workload, batch_size=_MOST_COUNTED))
        return counted.scaled(workload.batch_size / _MOST_COUNTED)
    batch = _batch(workload)
    with FakeTensorMode(allow_non_fake_inputs=True):
        task = TrainTask(RankingModel(workload.layout, workload.model))
        embeddings = _embeddings(workload, batch)
        with OperationCounter() as counter:
            output = task.model.ranking_arch(embeddings, batch)
            loss, _ = task.loss(output, batch.labels, batch.weights)
            loss.backward()
    return DenseCost(
        operations=tuple(counter.operations),
        num_parameters=num_dense_parameters(task),
    )


class OperationCounter(TorchDispatchMode):
    """Collects the operations that read or write memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # "prim" is a question, such as which device a tensor is on.
        if not func.is_view and func.namespace != "prim":
            operator = func._overloadpacket
            flops = flop_registry.get(_COUNTED_AS.get(operator, operator))
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            self.operations.append(
                Operation(
                    flops=flops(*args, **kwargs, out_val=result) if flops else 0,
                    num_bytes=sum(t.numel() * t.element_size() for t in tensors),
                )
            )
        return result


def _batch(workload: Workload) -> Batch:
    """A batch of the right shapes; the values do not matter."""
    layout, batch_size = workload.layout, workload.batch_size
    per_request = max(1, round(workload.impressions_per_request))
    request = torch.arange(batch_size) // per_request
    empty = KeyedJaggedTensor.empty()
    num_counts = 0 if layout.counts is None else layout.counts.width
    ids = torch.ones(batch_size, dtype=torch.int64)
    return Batch(
        sparse=empty,
        sequence=None,
        bag_lengths=torch.ones(batch_size, len(layout.bags)),
        numbers=torch.zeros(batch_size, len(layout.numbers)),
        request_index=request,
        pool_index=request,
        gated=_sequences(workload, "gated_item", request) if layout.history.gated else None,
        recent=_sequences(workload, "recent_item", request) if layout.history.recent else None,
        stranger=(
            _sequences(workload, "stranger_item", request) if layout.history.stranger else None
        ),
        history_counts=torch.zeros(batch_size, num_counts),
        labels=torch.zeros(batch_size),
        weights=torch.ones(batch_size),
        key=ids,
        progress=torch.zeros(batch_size),
        user_id=ids,
        request_id=request,
        item_id=ids,
        category_id=ids,
        domain_id=None if layout.domain_key is None else ids,
        history_length=ids,
        history_rank=ids,
    )


def _sequences(workload: Workload, key: str, request: Tensor) -> SequenceIndex:
    """One history for each request, all of the mean length."""
    num_requests = int(request[-1]) + 1
    length = math.ceil(workload.pooling_factors[key] * len(request) / num_requests)
    count, width = length * num_requests, workload.layout.num_behaviour_values
    columns = SequenceColumns(
        item_id=np.ones(count, np.int64),
        category_id=np.ones(count, np.int64),
        age_s=np.ones(count),
        lengths=np.full(num_requests, length),
        sequence=request.numpy(),
        size=np.ones(count) if workload.layout.history.clustered else None,
        attributes=np.ones((count, width)) if width else None,
    )
    return index_sequences(columns, batch_size=len(request))


def _embeddings(workload: Workload, batch: Batch) -> dict[str, Tensor]:
    """Results of the lookups, with gradients that go back to the tables."""
    dim = workload.model.embedding_dim
    lengths = {"gated": batch.gated, "recent": batch.recent, "stranger": batch.stranger}
    rows = {
        feature.key: len(batch.labels)
        if (index := lengths.get(feature.slot)) is None
        else len(index.item_id)
        for feature in workload.layout.features
    }
    return {key: torch.empty(count, dim, requires_grad=True) for key, count in rows.items()}
