"""Whether a module may look at its data, or at its sizes, and do its work accordingly."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true


def is_eager_on_cpu(values: Tensor) -> bool:
    """Whether an operation on these is computed at once, by a CPU.

    Then shapes may follow from the data, and pieces may be as small as a processor's cache. A GPU
    would have to wait for each of them, a compiler has one graph for all data, and tensors without
    data (planning) stand for those of any device.
    """
    traced = torch.compiler.is_compiling() or isinstance(values, FakeTensor)
    return values.device.type == "cpu" and not traced


def always(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds: in an exported graph, for those of every request.

    A graph that asked for the sizes of the request at hand would be one for requests alike.
    """
    return statically_known_true(condition) if torch.compiler.is_exporting() else bool(condition)
