"""A batch on its way from a worker process to its rank: one block of memory instead of many.

Each tensor that is sent between processes is a file of shared memory with a connection of its own;
a batch has 50 to 70 of them. Packed, it is one.
"""

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdp_torchrec.data.batch import Batch

_ALIGNMENT = 64
"""Each tensor begins at a multiple of so many bytes, as it does in memory of its own."""

_Place = tuple[int, torch.dtype, torch.Size]
"""First byte, type and shape of a tensor."""


@dataclass(frozen=True)
class PackedBatch:
    """A batch whose tensors lie in one block of memory."""

    memory: Tensor
    """All tensors, uint8."""
    rest: bytes
    """The batch, pickled, with the places of its tensors."""

    def unpack(self) -> Batch:
        """The batch; its tensors are views of the memory."""
        return _Unpickler(self).load()

    def pin_memory(self) -> "PackedBatch":
        """The same in page-locked memory, for asynchronous copies to a GPU."""
        return PackedBatch(self.memory.pin_memory(), self.rest)


def pack(batch: Batch) -> PackedBatch:
    """Copy the tensors of a batch into one block of memory that processes can share."""
    rest = io.BytesIO()
    pickler = _Pickler(rest)
    pickler.dump(batch)
    # Shared from the start, so that sending it copies nothing.
    storage = torch.UntypedStorage._new_shared(pickler.size)
    memory = torch.empty(0, dtype=torch.uint8).set_(storage)
    for place, tensor in pickler.placed:
        _view(memory, place).copy_(tensor)
    return PackedBatch(memory, rest.getvalue())


class _Pickler(pickle.Pickler):
    """Pickles everything but the tensors, and finds a place for each of them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.placed: list[tuple[_Place, Tensor]] = []
        self.size = _ALIGNMENT  # memory of no bytes cannot be shared

    def persistent_id(self, obj: Any) -> _Place | None:
        """The place of a tensor; None for what is pickled."""
        if not isinstance(obj, Tensor):
            return None
        place = (self.size, obj.dtype, obj.shape)
        self.placed.append((place, obj))
        num_bytes = obj.numel() * obj.element_size()
        self.size += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        return place


class _Unpickler(pickle.Unpickler):
    """Puts views of the memory where the tensors were."""

    def __init__(self, packed: PackedBatch) -> None:
        super().__init__(io.BytesIO(packed.rest))
        self._memory = packed.memory

    def persistent_load(self, pid: Any) -> Tensor:
        """The tensor at a place."""
        return _view(self._memory, pid)


def _view(memory: Tensor, place: _Place) -> Tensor:
    start, dtype, shape = place
    stop = start + shape.numel() * dtype.itemsize
    return memory[start:stop].view(dtype).view(shape)
