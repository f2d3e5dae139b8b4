"""AdamW of the dense part: PyTorch's fused kernel, with the counts of steps in one tensor.

torch.optim.AdamW(fused=True) counts the steps of every parameter by itself, and on a CPU each of
these sums is five operator calls: for `cdp` a tenth of all calls of a training step.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchrec.optim.keyed import KeyedOptimizer


class FusedAdamW(KeyedOptimizer):
    """The steps and the state of torch.optim.AdamW(fused=True), bit for bit."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        """Create zero state; the learning rate is that of the parameter group, 0 at first.

        Args:
            parameters: by name, on one device.
            betas: decay of the first and second moment.
            eps: added to the root of the second moment.
            weight_decay: decoupled.
        """
        self._betas = betas
        self._eps = eps
        self._weight_decay = weight_decay
        every = list(parameters.values())
        self._steps = torch.zeros(len(every), device=every[0].device)
        state = {
            parameter: {
                "step": step,
                "exp_avg": torch.zeros_like(parameter.data),
                "exp_avg_sq": torch.zeros_like(parameter.data),
            }
            for parameter, step in zip(every, self._steps.unbind(), strict=True)
        }
        super().__init__(parameters, state, [{"params": every, "lr": 0.0}])

    @torch.no_grad()
    # TorchRec's own subclasses of KeyedOptimizer return None, too.
    def step(self, closure: Any = None) -> None:  # pyrefly: ignore[bad-override]
        """One update of the parameters with a gradient."""
        (group,) = self.param_groups
        every = group["params"]
        used = [place for place, parameter in enumerate(every) if parameter.grad is not None]
        if len(used) == len(every):
            self._steps += 1
        else:
            self._steps[used] += 1
        parameters = [every[place] for place in used]
        states = [self.state[parameter] for parameter in parameters]
        torch._fused_adamw_(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            lr=group["lr"],
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=self._weight_decay,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
        )
