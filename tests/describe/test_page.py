"""The page says first what stands out, and needs nothing but itself."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.commands import prepare_data
from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.plausibility import Finding
from cdp_torchrec.data.prepare.staging import build_dataset
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.describe import figures
from cdp_torchrec.describe.findings import findings
from cdp_torchrec.describe.gate_levels import GateLevel
from cdp_torchrec.describe.measure import LogMeasures, measure_log
from cdp_torchrec.describe.page import MARK, Section, render
from cdp_torchrec.describe.sections import sections
from tests.data.staged_log import SPEC, request, stage
from tests.describe.logs import lists

Describe = Callable[..., None]


@pytest.fixture(scope="module")
def log(tiny_dataset: Path, one_rank: None) -> LogMeasures:
    return measure_log(tiny_dataset)


def check_page(page: str) -> None:
    """It needs nothing from outside, and says of each figure how to read it."""
    assert not re.search(r"<script|<link|<iframe|url\(|@import", page)
    assert not re.search(r'(href|src)="(http|//)', page)
    alternatives = re.findall(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,', page)
    assert len(alternatives) == page.count("<img") == 6
    assert all(re.search(r": .{40,}\.$", text) for text in alternatives)


@pytest.fixture
def describe(one_rank: None, monkeypatch: pytest.MonkeyPatch) -> Describe:
    """The command in this process, which is a rank already."""
    monkeypatch.setattr(prepare_data, "init_process_group", lambda: None)
    return lambda *arguments: prepare_data.main(["describe", *map(str, arguments)])


def texts(log: LogMeasures) -> str:
    return "\n".join(f"{finding.level}: {finding.text}" for finding in findings(log))


def test_what_a_log_is_called_is_text_and_no_html() -> None:
    section = Section("<b>", "a & b.", rows=[["<i>"], [f"{MARK}<script>"]])
    page = render("<script>alert(1)</script>", "<x>", [Finding("note", "<y>")], [section])
    assert not re.search(r"<script|<x>|<y>|<i>", page)
    assert '<td class="mark">&lt;script&gt;</td>' in page


@pytest.mark.slow
def test_the_same_log_has_the_same_figures(log: LogMeasures) -> None:
    drawn = [
        figures.draw_lists(
            {name: split.candidates for name, split in log.splits.items()},
            {name: split.order for name, split in log.splits.items()},
        )
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]


def test_a_handful_of_rows_cannot_hide(log: LogMeasures) -> None:
    few = replace(log, minimum_counts={"item": 1_000_000})
    number = len(log.coverage.counts["item"])
    assert f"0 of {number:,} ids of entity 'item' have an embedding row of their own" in texts(few)
    table = next(part for part in sections(few) if part.title.startswith("Ids with"))
    row = next(row for row in table.rows if row[0] == "item")
    assert row[3:5] == ["1,000,000", f"{MARK}0"]


def test_a_log_without_a_starter_has_no_mark(log: LogMeasures) -> None:
    without = replace(log, minimum_counts=None)
    assert "starter" not in texts(without)
    table = next(part for part in sections(without) if part.title.startswith("Ids with"))
    assert not any(cell.startswith(MARK) for row in table.rows for cell in row)


def test_a_feature_that_tells_the_label_is_a_warning(log: LogMeasures) -> None:
    leak = replace(log, single={"read_time, by size": 0.99})
    assert "warning: read_time, by size: alone it ranks test requests with GAUC 0.9900" in texts(
        leak
    )
    assert "read_time" not in texts(log)


def test_a_feature_whose_behaviours_rank_better_than_those_of_the_gate_is_a_warning(
    log: LogMeasures,
) -> None:
    assert "Prepare the log with" not in texts(log)
    brand, gate = GateLevel("brand", 9), GateLevel("category_id", 9)
    for level, counts in ((brand, [0, 3]), (gate, [3, 0])):
        level.add(np.array(counts), np.array([4, 4]), np.array([False, True]), np.array([0, 0]))
    found = texts(replace(log, gates=[gate, brand]))
    assert (
        "warning: the number of behaviours with the candidate's 'brand' ranks test requests with "
        "GAUC 1.0000, that with its 'category_id', the gate, 0.0000. Prepare"
    ) in found


def test_lists_sorted_by_label_are_a_warning(log: LogMeasures) -> None:
    assert "encodes the label" not in texts(log)
    order = type(log.splits["test"].order)()
    rng = np.random.default_rng(0)
    order.add(lists([np.sort(rng.integers(0, 2, 8))[::-1] for _ in range(500)]))
    log.splits["test"].order, kept = order, log.splits["test"].order
    try:
        assert "warning: the order of the lists encodes the label: in 100.0%" in texts(log)
    finally:
        log.splits["test"].order = kept


def test_an_order_that_ranks_better_than_the_logged_places_is_a_warning(log: LogMeasures) -> None:
    better = replace(log, single={**log.single, "place in the list": 0.85})
    assert "the order of the candidates alone ranks test requests with GAUC 0.8500" in texts(better)


def test_the_floor_is_the_best_untrained_scorer_but_never_the_truth(log: LogMeasures) -> None:
    known = {name: report.gauc for name, report in log.scorers.items()}
    assert max(known, key=lambda name: known[name]) == "bayes"
    best = max(*log.single.values(), *(gauc for n, gauc in known.items() if n != "bayes"))
    assert f"a model has to beat GAUC {best:.4f}" in texts(log)


@pytest.mark.slow
def test_the_command_writes_a_page_beside_the_dataset(
    tiny_dataset: Path, tmp_path: Path, describe: Describe, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "mine"
    shutil.copytree(tiny_dataset, dataset)
    describe(dataset)
    page = tmp_path / "mine.html"
    said = capsys.readouterr().out
    assert f"wrote {page}" in said
    assert "note: GAUC is measured on" in said
    check_page(page.read_text())


def test_a_page_that_is_there_stays(tiny_dataset: Path, tmp_path: Path, describe: Describe) -> None:
    page = tmp_path / "mine.html"
    page.write_text("kept")
    with pytest.raises(ConfigError, match=r"mine\.html: is there already; remove it"):
        describe(tiny_dataset, "--output", page)
    assert page.read_text() == "kept"


def test_a_starter_that_is_no_toml_is_named(
    tiny_dataset: Path, tmp_path: Path, describe: Describe
) -> None:
    dataset = tmp_path / "mine"
    shutil.copytree(tiny_dataset, dataset)
    (dataset / "starter.toml").write_text("[data\n")
    with pytest.raises(DatasetError, match=r"starter\.toml: cannot read data\.vocabulary"):
        describe(dataset)
    assert not (tmp_path / "mine.html").exists()


def test_a_damaged_dataset_has_no_page(
    tiny_dataset: Path, tmp_path: Path, describe: Describe
) -> None:
    dataset = tmp_path / "mine"
    shutil.copytree(tiny_dataset, dataset)
    part = next((dataset / "test").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="damaged or changed after its preparation"):
        describe(dataset)
    assert not (tmp_path / "mine.html").exists()


def test_the_page_has_a_name_that_browsers_open(
    tiny_dataset: Path, tmp_path: Path, describe: Describe
) -> None:
    with pytest.raises(ConfigError, match=r"page\.txt: is no name of a page"):
        describe(tiny_dataset, "--output", tmp_path / "page.txt")


@pytest.mark.slow
def test_a_log_without_behaviours_and_clicks_at_one_place_has_a_page(
    tmp_path: Path, one_rank: None
) -> None:
    rows = [request(n, timestamp=100 + n if n < 5 else 900 + n) for n in range(8)]
    stage(tmp_path, rows, [])
    build_dataset(tmp_path, tmp_path / "tiny", SPEC)
    log = measure_log(tmp_path / "tiny")
    assert log.gates == []
    assert len(render("x", "x", findings(log), sections(log))) > 1000
