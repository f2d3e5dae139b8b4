"""The batch that travels from the reader through the train pipeline into the model."""

# B impressions, R <= B requests, G <= B gated histories, K recency segments, M bag features,
# N numbers

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """B impressions of one rank, B the same on all ranks and steps.

    What belongs to a request is stored once per request and addressed by `request_index`; the
    gated history once per (request, category), addressed by `history_index`. Their bags fill the
    first R and G places of the stride B, the bags behind them are empty.
    """

    sparse: KeyedJaggedTensor
    """All ids, keys in the order of FeatureLayout.features, stride B."""
    bag_lengths: Tensor
    """Float [B, M]: lengths of the bags, to divide the sums by."""
    numbers: Tensor
    """Float [B, N]: standardised numbers of each impression."""
    request_index: Tensor
    """Int64 [B] in [0, R)."""
    history_index: Tensor
    """Int64 [B] in [0, G)."""
    history_matches: Tensor
    """Float [B, K]: behaviours on the target item itself in each recency segment."""
    labels: Tensor
    """Float [B], 0 or 1."""
    weights: Tensor
    """Float [B]: 1, or 0 for padding."""
    key: Tensor
    """Int64 [B]: names the impression for keyed noise; in training it differs by epoch."""
    user_id: Tensor
    """Int64 [B] code."""
    request_id: Tensor
    """Int64 [B]."""
    item_id: Tensor
    """Int64 [B] code."""
    history_length: Tensor
    """Int64 [B]: behaviours of the user before the request, before any truncation."""
    history_rank: Tensor
    """Int64 [B]: 0 for the item touched last, -1 for an item that is not in the history."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The batch on another device."""
        moved = {
            f.name: getattr(self, f.name).to(device=device, non_blocking=non_blocking)
            for f in fields(self)
        }
        return replace(self, **moved)

    def record_stream(self, stream: torch.Stream) -> None:
        """Mark every tensor as used by a CUDA stream."""
        for f in fields(self):
            getattr(self, f.name).record_stream(stream)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for asynchronous copies to a GPU."""
        return replace(self, **{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})
