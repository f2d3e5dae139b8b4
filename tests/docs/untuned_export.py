"""launch/export.py compiling as little as can be.

What another command of a page has compiled, with the same weights, is taken from there.
"""

import hashlib
import runpy
from pathlib import Path
from typing import Any

from torch._inductor import aoti_compile_and_package
from torch.export import ExportedProgram
from torch.fx import GraphModule

from cdp_torchrec.serving import compile
from tests.untuned import INDUCTOR

_COMPILED = Path("compiled")


def _compile_once(
    exported_program: ExportedProgram, *_: Any, package_path: Any = None, **settings: Any
) -> str:
    digest = hashlib.sha256()
    for module in exported_program.graph_module.modules():
        if isinstance(module, GraphModule):  # the program's own text names places in a checkout
            digest.update(module.code.encode())
    for tensor in (*exported_program.state_dict.values(), *exported_program.constants.values()):
        digest.update(tensor.detach().numpy().tobytes())
    compiled = (_COMPILED / digest.hexdigest()).with_suffix(".pt2")
    if not compiled.exists():
        _COMPILED.mkdir(exist_ok=True)
        aoti_compile_and_package(exported_program, package_path=str(compiled), **settings)
    package_path.write(compiled.read_bytes())
    return str(compiled)


compile.aoti_compile_and_package = _compile_once
compile._INDUCTOR_CPU = INDUCTOR
runpy.run_path(str(Path(__file__).parents[2] / "launch" / "export.py"), run_name="__main__")
