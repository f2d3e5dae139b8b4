"""The monitor of one run among many."""

import contextlib
import io
from pathlib import Path

from cdp_torchrec.monitor import Monitor


class QuietMonitor(Monitor):
    """Keeps the numbers of a run as any monitor, and leaves the terminal to the table's bar."""

    def __init__(self, run_dir: Path, *, total_steps: int, first_step: int) -> None:
        """As Monitor."""
        # A progress bar writes for ever to what was stderr when it was made.
        with contextlib.redirect_stderr(io.StringIO()):
            super().__init__(run_dir, total_steps=total_steps, first_step=first_step)

    def say(self, line: str) -> None:
        """Nothing: the same is in metrics.jsonl."""
