"""metrics.jsonl: one line of numbers after another, each at a step."""

import json
from pathlib import Path

from cdp_torchrec.run.records import Progress
from cdp_torchrec.whole_file import write_whole


def cut_metrics(path: Path, start: Progress) -> None:
    """Remove what a resumed training will write again.

    Args:
        path: metrics.jsonl of a run; it need not be there.
        start: where the training continues. Later lines go, as do a validation that is due again,
            the measurement on the test split, which follows the last step, and a line that was
            torn when a process ended.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    kept = b"".join(line for line in content.splitlines(keepends=True) if _stays(line, start))
    if kept != content:
        write_whole(path, kept)


def _stays(line: bytes, start: Progress) -> bool:
    try:
        found = json.loads(line)
        kind, step = found["kind"], found["step"]
        is_due = kind == "validation" and step == start.step and start.validation_is_due
        return line.endswith(b"\n") and kind != "test" and step <= start.step and not is_due
    except (ValueError, KeyError, TypeError):
        return False
