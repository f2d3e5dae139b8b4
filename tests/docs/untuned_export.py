"""launch/export.py compiling as little as can be: what takes minutes changes no score."""

import runpy
from pathlib import Path

from cdp_torchrec.serving import compile

compile._INDUCTOR_CPU = {
    "freezing": True,
    "cpp.threads": 1,
    "aot_inductor.compile_wrapper_opt_level": "O0",
}
runpy.run_path(str(Path(__file__).parents[2] / "launch" / "export.py"), run_name="__main__")
