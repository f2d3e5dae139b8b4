"""Ahead-of-time compilation of the dense part: one graph, no Python at run time."""

import errno
import io
import math
import os
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn
from torch._inductor import aoti_compile_and_package
from torch._inductor.exc import InductorError
from torch._inductor.ir import ChoiceCaller, IRNode
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.select_algorithm import add_preprocessing_fn, clear_preprocessing_fns
from torch._inductor.virtualized import V

from cdp_torchrec.progress import ProgressBar
from cdp_torchrec.serving.shared_templates import shared_templates
from cdp_torchrec.whole_file import write_whole

_INDUCTOR = {
    # Parameters become constants: what depends on them alone, such as the embedding of every
    # timestep of the sampler, is computed here and never again.
    "freezing": True,
}
_INDUCTOR_CPU = _INDUCTOR | {
    # A request is small: one thread each, whatever the machine that compiles has.
    "cpp.threads": 1,
    # Frozen layers would go to oneDNN, whose call takes ten times as long as the product of a layer
    # that is 16 wide. With it there are generated kernels on packed weights to choose (_choose).
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
    "autotune_num_choices_displayed": 0,
}

_SMALL_PRODUCT = 2_000_000
"""Multiplications up to which a generated kernel is chosen. With 77 impressions, three requests,
timing chose it for layers of 64 (.3 M) and 128 (1.3 M), and oneDNN, whose call takes 19 us, but
which is up to 2.7 times as fast inside, for 192 (2.8 M), 256 and 384."""


@torch.no_grad()
def compile_ranker(
    module: nn.Module,
    example: tuple[Any, ...],
    *,
    dynamic_shapes: tuple[Any, ...] | None,
    package: Path,
) -> Path:
    """Compile a module for the device on which its parameters are.

    Args:
        module: maps tensors (or pytrees of them) to tensors; it is put into evaluation mode.
        example: its arguments; a dimension that is dynamic must have at least 2 elements.
        dynamic_shapes: of each argument, as torch.export takes them; None: all shapes are fixed.
        package: the file to write, `<name>.pt2`. Load it with torch._inductor.aoti_load_package.

    Raises:
        OSError: a disk is full: that of `package`, or that of the compiler's own files.

    Returns:
        The package.
    """
    program = torch.export.export(module.eval(), example, dynamic_shapes=dynamic_shapes)
    on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
    settings = _INDUCTOR_CPU if on_cpu else _INDUCTOR
    content = io.BytesIO()  # PyTorch's own writer of files ends the process where a disk is full

    with ProgressBar("compile", total=None, unit="products") as bar:

        def choose(choices: list[ChoiceCaller]) -> list[ChoiceCaller]:
            bar.advance()
            return _choose(choices)

        add_preprocessing_fn(choose)
        try:
            with redirect_stderr(_WithoutStatistics(sys.stderr)), shared_templates():
                aoti_compile_and_package(
                    program, package_path=content, inductor_configs=dict(settings)
                )
        except InductorError as error:
            full = os.strerror(errno.ENOSPC)
            if full in str(error):
                raise OSError(errno.ENOSPC, full, cache_dir()) from error
            raise
        finally:
            clear_preprocessing_fns()
    write_whole(package, content.getvalue())
    return package


class _WithoutStatistics(io.TextIOBase):
    """Standard error without the statistics of autotuning, which no setting turns off."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if not text.startswith("Autotune Choices Stats"):
            self._stream.write(text)
        return len(text)


def _choose(choices: list[ChoiceCaller]) -> list[ChoiceCaller]:
    """One kernel for a product: by its size, as timing would, but none is compiled to be timed.

    Never a generated one for batches of matrices. To make it fit, PyTorch 2.13 overwrites the free
    batch size of the second factor by that of the example, in the program itself
    (CppGemmTemplate.normalize_shapes): whichever kernel is chosen then computes for no other one.
    Nor where a matrix is added that is computed beside it: its result is wrong.
    """
    generated = [choice for choice in choices if choice.info_dict().get("backend") == "CPP"]
    others = [choice for choice in choices if choice not in generated]
    if not generated or not others:
        return choices
    product = generated[0]
    _, _, *added = product.input_nodes
    is_plain = len(product.layout.size) == 2 and all(map(_is_vector, added))
    return generated if is_plain and _work(product) < _SMALL_PRODUCT else others


def _is_vector(added: IRNode) -> bool:
    """Whether what is added to a product is the same for all of its rows: the bias of a layer."""
    stride = added.maybe_get_stride()
    return stride is not None and stride[0] == 0


def _work(product: ChoiceCaller) -> int:
    """Multiplications of a product of two matrices, at the sizes of the example."""
    sizes = [*product.layout.size, product.input_nodes[0].get_size()[-1]]
    return math.prod(V.graph.sizevars.optimization_hint(size) for size in sizes)
