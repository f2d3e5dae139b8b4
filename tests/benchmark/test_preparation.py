"""The preparation benchmark: its logs are what they say, and each step has its figures."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from cdp_torchrec.benchmark.preparation.case import Cost, SizeFigures
from cdp_torchrec.benchmark.preparation.config import PreparationSettings
from cdp_torchrec.benchmark.preparation.log import SPEC, write_log
from cdp_torchrec.benchmark.preparation.table import as_markdown
from cdp_torchrec.commands import benchmark
from tests.whole_matrix import only_whole

SMALL = PreparationSettings(num_items=50, num_categories=5)


def test_a_drawn_log_is_the_same_each_time_and_the_day_after_it_is_later(tmp_path: Path) -> None:
    for name in ("one", "same"):
        write_log(tmp_path / name, range(60), (900, 40), 30, SMALL)
    write_log(tmp_path / "day", range(60, 61), (15, 3), 30, SMALL)
    tables = {
        (name, kind): pq.read_table(tmp_path / name / kind)
        for name in ("one", "same", "day")
        for kind in ("behaviours", "requests")
    }
    for kind, rows in (("behaviours", 900), ("requests", 40)):
        log, day = tables["one", kind], tables["day", kind]
        assert log.equals(tables["same", kind]) and len(log) == rows
        until, later = log["timestamp"].to_numpy().max(), day["timestamp"].to_numpy().min()
        assert until < later
    requests = tables["one", "requests"]
    assert not set(requests["request_id"].to_pylist()) & set(
        tables["day", "requests"]["request_id"].to_pylist()
    )
    assert (requests["timestamp"].to_numpy() < SPEC.test_from).any()
    item, category = (tables["one", "behaviours"][n].to_numpy() for n in ("item", "category"))
    assert (item % 5 == category).all() and 0 <= item.min() and item.max() < 50
    counts = np.bincount(item, minlength=50)
    assert counts[0] > 5 * counts[10:].mean()  # Zipf


def test_more_threads_than_a_machine_can_bear_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"num_threads\n.* less than or equal to 1024"):
        PreparationSettings(num_threads=1025)


def test_the_table_divides_rows_by_cpu_seconds() -> None:
    found = SizeFigures(
        behaviours=600_000,
        users=0,
        requests=60_000,
        impressions=600_000,
        preparation=Cost(cpu_s=33.0, wall_s=40.0, peak_mib=900.0),
        append=Cost(cpu_s=1.1, wall_s=2.0, peak_mib=500.0),
        limit=Cost(cpu_s=0.2, wall_s=0.3, peak_mib=100.0),
        store_bytes=26_000_000,
        copies_bytes=5_000_000,
    )
    row = as_markdown([found], SMALL).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    preparation, append = ["33.0", "40", "20.0k", "900"], ["1.1", "2", "10.0k", "1/30.0"]
    assert cells == ["600,000", "600,000", *preparation, *append, "0.2", "26", "5"]


@pytest.mark.slow
@only_whole
def test_the_benchmark_prepares_and_appends_and_leaves_no_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["num_items=500", "num_categories=10", "behaviours=[10000]"]
    benchmark.main(
        [
            "prepare",
            *(f"benchmark.{setting}" for setting in small),
            f"benchmark.scratch={tmp_path / 'scratch'}",
            f"benchmark.output={tmp_path / 'out'}",
        ]
    )
    assert "| 10,000 " in capsys.readouterr().out
    assert list((tmp_path / "scratch").iterdir()) == []
    [found] = json.loads((tmp_path / "out" / "preparation.json").read_text())["sizes"]
    assert found["impressions"] == 2000
    assert all(found[step]["cpu_s"] > 0 for step in ("preparation", "append"))
    # Two orders of item and time, category and cluster.
    assert found["store_bytes"] > 32 * 10_000
