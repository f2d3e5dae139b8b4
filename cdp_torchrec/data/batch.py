"""The batch that travels from the reader through the train pipeline into the model."""

# B impressions, R <= B requests, G <= B gated histories

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from cdp_torchrec.data.model_inputs import DenseInputs
from cdp_torchrec.data.tensors import map_tensors


@dataclass
class Batch(DenseInputs, Pipelineable):
    """B impressions of one rank, B the same on all ranks and steps.

    Bags of requests and of gated histories fill the first R and G places of the stride B, the bags
    behind them are empty.
    """

    sparse: KeyedJaggedTensor
    """Ids of all pooled lookups, keys in the order of FeatureLayout.pooled_features, stride B."""
    sequence: KeyedJaggedTensor | None
    """Ids of the tables that sequences read, keys in the order of FeatureLayout.sequence_features,
    stride B; None if the model reads no sequence. Here a place of padding holds row 0."""
    labels: Tensor
    """Float [B], 0 or 1; of a training on soft labels between them."""
    weights: Tensor
    """Float [B]: 1, or 0 for padding."""
    user_id: Tensor
    """Int64 [B] code."""
    request_id: Tensor
    """Int64 [B]."""
    history_length: Tensor
    """Int64 [B]: behaviours of the user before the request, before any truncation."""
    history_rank: Tensor
    """Int64 [B]: 0 for the item touched last, -1 for an item that is not in the history."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The batch on another device."""
        return map_tensors(self, lambda tensor: tensor.to(device=device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Mark every tensor as used by a CUDA stream."""

        def record(tensor: Any) -> Any:
            tensor.record_stream(stream)
            return tensor

        map_tensors(self, record)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for asynchronous copies to a GPU."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())
