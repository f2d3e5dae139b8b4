"""Which parameters cannot matter: in float64, where a gradient of 0 stands apart from a small one.

In float32 a gradient that cancels is what rounding leaves of it: 0 with one kernel, 1e-9 with
another.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

_ROUNDING = 1e-11
"""Of the largest gradient: what cancels is below in float64, what matters above."""


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


def idle(gradients: Mapping[str, Tensor | None]) -> list[str]:
    """Names of the gradients, in float64, that are no more than rounding beside the largest."""
    largest = {}
    for name, gradient in gradients.items():
        assert gradient is None or gradient.dtype == torch.float64, name
        largest[name] = 0.0 if gradient is None else gradient.abs().max().item()
    bound = _ROUNDING * max(largest.values(), default=0.0)
    return [name for name, value in largest.items() if value <= bound]


def idle_parameters(module: nn.Module, total: Tensor) -> list[str]:
    """Names of the parameters of a module in float64 that do not move `total`.

    Args:
        module: its gradients are those of `total` afterwards.
        total: a scalar of its results.
    """
    module.zero_grad()
    total.backward()
    return idle({name: parameter.grad for name, parameter in module.named_parameters()})
