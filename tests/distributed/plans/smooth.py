"""A model whose units have no edge."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_EDGED = (torch.relu, functional.relu, Tensor.relu, Tensor.relu_)


class SmoothUnits(TorchFunctionMode):
    """Inside, every ReLU is a SiLU, in forward and backward.

    Two orders of summation differ by a rounding. A ReLU whose input lies that near to zero (-1.2e-6
    on one rank, 0.7e-6 on four) is off in one of them and on in the other, which changes gradients
    of the rows of its impression by 3e-5; and an optimizer that divides a gradient by its own size
    makes a step of 6e-3 of that. Twenty steps evaluate some 9e5 units, so one of them lies there.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The function, or what stands for it."""
        if func in _EDGED:
            return functional.silu(args[0])
        return func(*args, **(kwargs or {}))
