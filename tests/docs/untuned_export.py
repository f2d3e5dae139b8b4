"""launch/export.py without autotuning, which takes minutes and changes no score."""

import runpy
from pathlib import Path

from cdp_torchrec.serving import compile

compile._INDUCTOR_CPU = {"freezing": True, "cpp.threads": 1}
runpy.run_path(str(Path(__file__).parents[2] / "launch" / "export.py"), run_name="__main__")
