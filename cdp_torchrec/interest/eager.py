"""Whether a module may look at its data, and do its work piece by piece."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_eager_on_cpu(values: Tensor) -> bool:
    """Whether an operation on these is computed at once, by a CPU.

    Then shapes may follow from the data, and pieces may be as small as a processor's cache. A GPU
    would have to wait for each of them, a compiler has one graph for all data, and tensors without
    data (planning) stand for those of any device.
    """
    traced = torch.compiler.is_compiling() or isinstance(values, FakeTensor)
    return values.device.type == "cpu" and not traced
