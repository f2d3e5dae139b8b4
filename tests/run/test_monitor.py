"""What a run keeps of its numbers."""

import json
import math
from pathlib import Path

import pytest

from cdp_torchrec.run.monitor import Monitor


def test_what_is_undefined_is_null(tmp_path: Path) -> None:
    with Monitor(tmp_path, total_steps=2, quiet=True) as monitor:
        monitor.record("validation", 1, {"auc": 0.5, "gauc": math.nan})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON
    assert (found["auc"], found["gauc"]) == (0.5, None)
