"""The batch that travels from the reader through the train pipeline into the model."""

# B impressions, R <= B requests, G <= B gated histories, K recency segments, M bag features,
# N numbers

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from cdp_torchrec.data.sequence_index import SequenceIndex


@dataclass
class DenseInputs:
    """What the dense part of a model reads of B impressions beside the embeddings.

    What belongs to a request is stored once per request and addressed by `request_index`; the
    gated history once per (request, category), addressed by `pool_index`.
    """

    bag_lengths: Tensor
    """Float [B, M]: lengths of the bags, to divide the sums by."""
    numbers: Tensor
    """Float [B, N]: standardised numbers of each impression."""
    request_index: Tensor
    """Int64 [B] in [0, R)."""
    pool_index: Tensor
    """Int64 [B] in [0, G): gated history of the impression in the pooled lookup."""
    gated: SequenceIndex | None
    """The gated histories as sequences, if the model reads them."""
    recent: SequenceIndex | None
    """The recent behaviours of each request, if the model reads them."""
    stranger: SequenceIndex | None
    """Recent behaviours of another user for each request, if the model reads them; None outside of
    training."""
    history_counts: Tensor
    """Float [B, 2 K]: behaviours in the target's category by recency segment, then those on the
    target item itself; [B, 0] if the tower does not see them."""
    key: Tensor
    """Int64 [B]: names the impression for keyed noise; in training it differs by epoch."""
    progress: Tensor | None
    """Float [B]: passes over the training data before this step, the same everywhere; it follows
    from the position alone, so a resumed training goes on where it was. None outside of training.
    """
    item_id: Tensor
    """Int64 [B] code."""
    category_id: Tensor
    """Int64 [B] code; 0 where the log has no category."""
    domain_id: Tensor | None
    """Int64 [B] code of the request's domain, if the model asks for it and the log has one."""


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
    """Float [B], 0 or 1."""
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
        return _map(self, lambda tensor: tensor.to(device=device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Mark every tensor as used by a CUDA stream."""

        def record(tensor: Any) -> Any:
            tensor.record_stream(stream)
            return tensor

        _map(self, record)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for asynchronous copies to a GPU."""
        return _map(self, lambda tensor: tensor.pin_memory())


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to every tensor and keyed jagged tensor inside."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_map(element, function) for element in value)
    if is_dataclass(value) and not isinstance(value, type):
        mapped = {f.name: _map(getattr(value, f.name), function) for f in fields(value)}
        return replace(value, **mapped)
    return function(value)
