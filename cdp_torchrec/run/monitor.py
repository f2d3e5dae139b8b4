"""Progress, metrics.jsonl and TensorBoard of a run; only rank 0 writes."""

import json
import math
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import torch
from torch.utils.tensorboard import SummaryWriter

from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.progress import ProgressBar
from cdp_torchrec.run.metrics_file import cut_metrics
from cdp_torchrec.run.records import BEGINNING, Progress
from cdp_torchrec.run.saved import METRICS, TENSORBOARD
from cdp_torchrec.undefined import json_ready
from cdp_torchrec.whole_file import naming


class Monitor:
    """Shows where a training stands and keeps its numbers."""

    def __init__(
        self,
        run_dir: Path,
        *,
        total_steps: int,
        start: Progress = BEGINNING,
        quiet: bool = False,
    ) -> None:
        """Open `<run_dir>/metrics.jsonl`, continue it after `start`, and start counting steps.

        Args:
            run_dir: directory of the run.
            total_steps: steps of the whole training.
            start: what was done before this process started.
            quiet: keep the numbers, and leave the terminal to a run of many runs.
        """
        self._active = is_rank_zero()
        self._run_dir = run_dir
        self._file: TextIO | None = None
        self._started = time.perf_counter()
        self._bar = ProgressBar(
            "train",
            total=total_steps,
            done=start.step,
            unit="steps",
            active=self._active and not quiet,
            keep=True,
        )
        if self._active:
            cut_metrics(run_dir / METRICS, start)
            self._file = (run_dir / METRICS).open("a")
            # TensorBoard forgets what it was told of later steps.
            purge_step = start.step + 1 if start.step else None
            self._board = SummaryWriter(run_dir / TENSORBOARD, purge_step=purge_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, traceback)
        if self._file is not None:
            with naming(self._run_dir / METRICS):
                self._file.close()
            with naming(self._run_dir / TENSORBOARD):
                self._board.close()

    def advance(self) -> None:
        """One more step is done."""
        self._bar.advance()

    def show(self, values: Mapping[str, float]) -> None:
        """Put a few numbers beside the count of steps."""
        shown = {n: f"{v:,.0f}" if v >= 1000 else f"{v:.4g}" for n, v in values.items()}
        self._bar.note(", ".join(f"{name} {value}" for name, value in shown.items()))

    def say(self, line: str) -> None:
        """Print a dated line above the progress bar."""
        self._bar.say(line)

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl and the same numbers to TensorBoard.

        Args:
            kind: "train", "validation" or "test".
            step: optimizer steps done.
            values: numbers by name; NaN where one is undefined, null in the file.

        Raises:
            OSError: the disk is full, say; with the name of what cannot be written.
        """
        if self._file is None:
            return
        seconds = round(time.perf_counter() - self._started, 3)
        line = {"kind": kind, "step": step, "seconds": seconds, **values}
        with naming(self._run_dir / METRICS):
            self._file.write(json.dumps(json_ready(line), allow_nan=False) + "\n")
            self._file.flush()
        with naming(self._run_dir / TENSORBOARD):
            for name, value in values.items():
                if not math.isnan(value):
                    self._board.add_scalar(f"{kind}/{name}", value, step)


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process (CPU) or of the device (CUDA), in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
