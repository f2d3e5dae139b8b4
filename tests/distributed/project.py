"""A directory like the checkout, with a job of the test's own."""

import shutil
from pathlib import Path

from tests.paths import ROOT


def make_project(folder: Path, script: str) -> Path:
    """Write .torchxconfig and launch/train.py.

    Args:
        folder: where; it is there.
        script: what the job does.
    """
    shutil.copy(ROOT / ".torchxconfig", folder)
    (folder / "launch").mkdir()
    (folder / "launch" / "train.py").write_text(script)
    return folder
