"""What the dense part of a model from outside costs: every operation on the meta device."""

# B impressions

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.tables import num_dense_parameters
from cdp_torchrec.planning.dense import DenseCost, Operation, OperationCounter
from cdp_torchrec.planning.outside import OutsideWorkload

_FLOAT_BYTES = 4


def count_outside(workload: OutsideWorkload) -> DenseCost:
    """Operations of a step of one rank: as they run, or those of the linear layers alone.

    Raises:
        ConfigError: the model does not run on the meta device.
    """
    model = workload.make()
    operations = (
        _of_linear_layers(model.module, workload.batch_size)
        if model.inputs is None
        else _as_run(model.module, model.inputs, workload)
    )
    return DenseCost(tuple(operations), num_dense_parameters(model.module))


def _of_linear_layers(module: nn.Module, batch_size: int) -> list[Operation]:
    """Forward and the two products of backward of every linear layer, once for each impression."""
    operations = []
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            weights = layer.in_features * layer.out_features
            moved = batch_size * (layer.in_features + layer.out_features) + weights
            operations += 3 * [Operation(2 * batch_size * weights, _FLOAT_BYTES * moved)]
    return operations


def _as_run(
    module: nn.Module, make_inputs: Callable[[int], Sequence[Any]], workload: OutsideWorkload
) -> list[Operation]:
    for inner in module.modules():
        if isinstance(inner, EmbeddingBagCollection):
            inner.forward = _bags(inner, workload.batch_size)
        elif isinstance(inner, EmbeddingCollection):
            inner.forward = _singles(inner, workload)
    try:
        module.to("meta")  # layers that were made on a device, too
        given = tuple(make_inputs(workload.batch_size))
        inputs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), given)
        with OperationCounter() as counter:
            results = [
                leaf
                for leaf in tree_leaves(module(*inputs))
                if isinstance(leaf, Tensor) and leaf.requires_grad
            ]
            torch.stack([result.float().sum() for result in results]).sum().backward()
    # Whatever a model of the user's does that the meta device cannot.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise ConfigError(
            f"{workload.name}: forward and backward do not run on the meta device with the "
            f"arguments that are given: {type(error).__name__}: {reason}; a function that returns "
            "the model alone has its linear layers counted"
        ) from error
    return counter.operations


def _bags(collection: EmbeddingBagCollection, batch_size: int) -> Any:
    """Stands in for the lookups, whose time the planner estimates."""

    def forward(features: Any) -> KeyedTensor:
        widths = collection._lengths_per_embedding
        values = torch.empty(batch_size, sum(widths), device="meta", requires_grad=True)
        return KeyedTensor(collection._embedding_names, widths, values)

    return forward


def _singles(collection: EmbeddingCollection, workload: OutsideWorkload) -> Any:
    def forward(features: Any) -> dict[str, JaggedTensor]:
        found = {}
        for config in collection.embedding_configs():
            for feature in config.feature_names:
                count = round(workload.batch_size * workload.pooling_factors[feature])
                found[feature] = JaggedTensor(
                    torch.empty(count, config.embedding_dim, device="meta", requires_grad=True),
                    lengths=torch.empty(workload.batch_size, dtype=torch.int64, device="meta"),
                )
        return found

    return forward
