"""How the ranks of an evaluation talk: sums, maxima, and rows sent to the rank that needs them."""

# R ranks

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


class Ranks:
    """The ranks that share an evaluation; without torch.distributed this process alone.

    Arrays live on the CPU. They pass through the GPU only if the group has no CPU backend.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self._group = process_group
        self.size, self.rank = 1, 0
        self._device = torch.device("cpu")
        if dist.is_available() and dist.is_initialized():
            self.size = dist.get_world_size(process_group)
            self.rank = dist.get_rank(process_group)
            if "cpu:" not in dist.get_backend_config(process_group):
                self._device = torch.device("cuda", torch.cuda.current_device())

    def sum(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Elementwise sum over ranks, the same on all of them."""
        return self._all_reduce(array, dist.ReduceOp.SUM)

    def max(self, value: int) -> int:
        """Largest value of any rank."""
        return int(self._all_reduce(np.array([value]), dist.ReduceOp.MAX)[0])

    def route(self, parts: Sequence[NDArray]) -> NDArray:
        """Send `parts[r]` to rank r.

        Args:
            parts: R vectors of one (possibly structured) dtype, of any lengths.

        Returns:
            What all ranks sent here, concatenated by sender.
        """
        if self.size == 1:
            return parts[0]
        sizes = torch.tensor([part.nbytes for part in parts], device=self._device)
        incoming_sizes = torch.empty_like(sizes)
        dist.all_to_all_single(incoming_sizes, sizes, group=self._group)
        outgoing = torch.from_numpy(np.concatenate(parts).view(np.uint8)).to(self._device)
        incoming = outgoing.new_empty(int(incoming_sizes.sum()))
        dist.all_to_all_single(
            incoming, outgoing, incoming_sizes.tolist(), sizes.tolist(), group=self._group
        )
        return incoming.cpu().numpy().view(parts[0].dtype)

    def _all_reduce(
        self, array: NDArray[Scalar], operation: dist.ReduceOp.RedOpType
    ) -> NDArray[Scalar]:
        if self.size == 1:
            return array
        tensor = torch.from_numpy(array.copy()).to(self._device)
        dist.all_reduce(tensor, operation, group=self._group)
        return tensor.cpu().numpy()
