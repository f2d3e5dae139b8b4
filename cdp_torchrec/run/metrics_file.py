"""metrics.jsonl: one line of numbers after another, each at a step."""

import json
from pathlib import Path

from cdp_torchrec.whole_file import write_whole


def cut_metrics(path: Path, step: int) -> None:
    """Remove what a resumed training will write again.

    Args:
        path: metrics.jsonl of a run; it need not be there.
        step: last step of the checkpoint that the training continues from. Later lines go, as does
            the measurement on the test split, which follows the last step, and a line that was
            torn when a process ended.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    kept = b"".join(line for line in content.splitlines(keepends=True) if _stays(line, step))
    if kept != content:
        write_whole(path, kept)


def _stays(line: bytes, step: int) -> bool:
    try:
        found = json.loads(line)
        return line.endswith(b"\n") and found["kind"] != "test" and found["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
