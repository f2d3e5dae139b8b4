"""Ahead-of-time compilation of the dense part: one graph, no Python at run time."""

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn
from torch._inductor import aoti_compile_and_package
from torch._inductor.ir import ChoiceCaller
from torch._inductor.select_algorithm import add_preprocessing_fn, clear_preprocessing_fns

from cdp_torchrec.progress import ProgressBar

_INDUCTOR = {
    # Parameters become constants: what depends on them alone, such as the embedding of every
    # timestep of the sampler, is computed here and never again.
    "freezing": True,
}
_INDUCTOR_CPU = _INDUCTOR | {
    # A request is small: one thread each, whatever the machine that compiles has.
    "cpp.threads": 1,
    # Frozen layers would go to oneDNN, whose call takes ten times as long as the product of a layer
    # that is 16 wide. Autotuning packs the weights for a generated kernel wherever that is faster.
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
    "autotune_num_choices_displayed": 0,
}


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

    Returns:
        The package.
    """
    program = torch.export.export(module.eval(), example, dynamic_shapes=dynamic_shapes)
    on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
    settings = _INDUCTOR_CPU if on_cpu else _INDUCTOR

    with ProgressBar("compile", total=None, unit="tuned products") as bar:

        def choose(choices: list[ChoiceCaller]) -> list[ChoiceCaller]:
            bar.advance()
            return _without_batched_templates(choices)

        add_preprocessing_fn(choose)
        try:
            with redirect_stderr(_WithoutStatistics(sys.stderr)):
                aoti_compile_and_package(
                    program, package_path=str(package), inductor_configs=dict(settings)
                )
        finally:
            clear_preprocessing_fns()
    return package


class _WithoutStatistics(io.TextIOBase):
    """Standard error without the statistics of autotuning, which no setting turns off."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if not text.startswith("Autotune Choices Stats"):
            self._stream.write(text)
        return len(text)


def _without_batched_templates(choices: list[ChoiceCaller]) -> list[ChoiceCaller]:
    """Kernels to choose from for a product, without generated ones for batches of matrices.

    To time such a kernel, PyTorch 2.13 overwrites the free batch size of the second factor by that
    of the example, in the program itself (CppGemmTemplate.normalize_shapes): whichever kernel is
    chosen then computes for no other batch size.
    """
    return [
        choice
        for choice in choices
        if not (choice.info_dict().get("backend") == "CPP" and len(choice.layout.size) == 3)
    ]
