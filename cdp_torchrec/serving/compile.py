"""Ahead-of-time compilation of the dense part: one graph, no Python at run time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._inductor import aoti_compile_and_package

_INDUCTOR = {
    # Parameters become constants: what depends on them alone, such as the embedding of every
    # timestep of the sampler, is computed here and never again.
    "freezing": True,
}


@torch.no_grad()
def compile_ranker(
    module: nn.Module,
    example: tuple[Any, ...],
    *,
    dynamic_shapes: Sequence[Any] | dict[str, Any] | None,
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
    aoti_compile_and_package(program, package_path=str(package), inductor_configs=dict(_INDUCTOR))
    return package
