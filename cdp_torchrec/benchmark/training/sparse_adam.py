"""Adam of plain tables, which takes the steps of the sharded ones."""

from collections.abc import Callable, Iterable

import torch
from torch import nn


class SparseAdam(torch.optim.SparseAdam):
    """torch.optim.SparseAdam, but epsilon is added to the corrected root of the second moment.

    So do the Adam paper (arXiv 1412.6980, algorithm 1), torch.optim.Adam, FBGEMM and our LazyAdam.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Args: as of torch.optim.SparseAdam."""
        super().__init__(parameters, lr=lr, betas=betas, eps=eps)
        self._beta2, self._eps = betas[1], eps
        self._num_steps = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyrefly: ignore
        """One update of the rows with a gradient."""
        self._num_steps += 1
        for group in self.param_groups:
            group["eps"] = self._eps * (1 - self._beta2**self._num_steps) ** 0.5
        return super().step(closure)
