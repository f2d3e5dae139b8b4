"""Which parameters cannot matter: in float64, where a gradient of 0 stands apart from a small one.

In float32 a gradient that cancels is what rounding leaves of it: 0 with one kernel, 1e-9 with
another.
"""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

_ROUNDING = 1e-11
"""Of the largest gradient of a module: what cancels is below in float64, what matters above."""


def in_float64(inputs: Any) -> Any:
    """The same inputs (a tensor, or dataclasses and tuples of tensors) in float64."""
    if isinstance(inputs, Tensor):
        return inputs.double() if inputs.is_floating_point() else inputs
    if isinstance(inputs, tuple):
        return tuple(in_float64(part) for part in inputs)
    if is_dataclass(inputs) and not isinstance(inputs, type):
        return replace(
            inputs, **{f.name: in_float64(getattr(inputs, f.name)) for f in fields(inputs)}
        )
    return inputs


def idle_parameters(module: nn.Module, total: Tensor) -> list[str]:
    """Names of the parameters that do not move `total`, which is run backward.

    Args:
        module: in float64.
        total: a scalar of its results.
    """
    module.zero_grad()
    total.backward()
    largest = {
        name: 0.0 if parameter.grad is None else parameter.grad.abs().max().item()
        for name, parameter in module.named_parameters()
    }
    assert all(parameter.dtype == torch.float64 for parameter in module.parameters())
    bound = _ROUNDING * max(largest.values(), default=0.0)
    return [name for name, gradient in largest.items() if gradient <= bound]
