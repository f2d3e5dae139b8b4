"""Choices come from validation alone, and a partial table says what is missing."""

import json
from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.compare.choice import best_point
from cdp_torchrec.compare.output import write_table
from cdp_torchrec.compare.results import METRICS, Result, read_result, write_failure, write_result
from cdp_torchrec.compare.summary import summarize
from cdp_torchrec.config import ConfigError
from tests.compare.conftest import MakeResult, MakeTable, finish
from tests.squeeze import squeezed

OTHERS = ("models.a=[]", "models.b=[]")


def test_a_result_reads_back_as_written(tmp_path: Path, make_result: MakeResult) -> None:
    written = make_result(gauc=0.7, validation=0.6)
    write_result(tmp_path, written)
    found = read_result(tmp_path)
    assert found is not None
    assert (found.metrics, found.cost) == (written.metrics, written.cost)
    for name in METRICS:
        assert np.array_equal(found.replicates[name], written.replicates[name])


def test_the_grid_point_is_chosen_on_validation_where_the_test_split_disagrees(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table()
    low, high = table.tuning_cells("tiny", "pooled")
    finish(low, make_result(gauc=0.9, validation=0.6))
    assert best_point(table, "tiny", "pooled") is None  # the search is not over
    finish(high, make_result(gauc=0.5, validation=0.7))
    assert best_point(table, "tiny", "pooled") == high.point
    rows = {row.name: row for row in summarize(table, "tiny").rows}
    assert rows["pooled"].measured["gauc"].mean == 0.5


def test_log_loss_is_better_where_it_is_lower(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table('settings=["trainer.validation_metric=log_loss"]')
    low, high = table.tuning_cells("tiny", "pooled")
    finish(low, make_result(gauc=0.5, validation=0.2))
    finish(high, make_result(gauc=0.9, validation=0.3))
    assert best_point(table, "tiny", "pooled") == low.point


def test_a_failed_grid_point_takes_no_part_in_the_choice(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table()
    low, high = table.tuning_cells("tiny", "pooled")
    finish(low, make_result(gauc=0.5, validation=0.1))
    write_failure(high.directory, "NonFiniteLossError: step 3", "")
    assert best_point(table, "tiny", "pooled") == low.point


def test_the_strongest_baseline_is_chosen_on_validation_and_is_no_floor(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table(*OTHERS)
    scores = {"none": (0.9, 0.9), "pooled": (0.8, 0.8), "a": (0.5, 0.7), "b": (0.7, 0.6)}
    for model, (gauc, validation) in scores.items():
        for point in table.points(model):
            for seed in table.config.seeds:
                result = make_result(gauc=gauc, validation=validation)
                finish(table.cell("tiny", model, point, seed), result)
    summary = summarize(table, "tiny")
    assert summary.strongest == "a"
    assert summary.missing == ()
    rows = {row.name: row for row in summary.rows}
    assert rows["pooled"].to_strongest["gauc"].mean == pytest.approx(0.3)
    assert rows["b"].to_reference["gauc"].mean == pytest.approx(-0.1)
    assert rows["pooled"].to_reference == {}
    text = squeezed(write_table(table))
    assert "| **pooled** | 0.8000 +/- 0.0000 |" in text
    assert "| -0.1000 [-0.1000, -0.1000] * | +0.2000 [+0.2000, +0.2000] * |" in text
    assert "Strongest baseline: a, by the mean gauc on validation" in text
    assert "The paper has other numbers." in text


def test_a_partial_table_names_the_missing_cells_and_the_seeds_it_has(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table()
    for cell in table.tuning_cells("tiny", "pooled"):
        finish(cell, make_result(gauc=0.7, validation=0.7))
    text = squeezed(write_table(table))
    missing = table.cell("tiny", "pooled", table.points("pooled")[0], 1)
    assert "**pooled** (1 of 2 seeds)" in text
    assert f"- {missing.name}\n" in text
    for cell in table.tuning_cells("tiny", "none"):
        assert f"- {cell.name}\n" in text
    assert "| none |" not in text
    found = json.loads((table.run_dir / "table.json").read_text())["tiny"]
    assert len(found["missing"]) == 3
    assert found["rows"][0]["metrics"]["gauc"]["by_seed"] == {"0": 0.7}
    assert (table.run_dir / "gauc.png").read_bytes().startswith(b"\x89PNG")


def test_untrained_scorers_close_the_gap_to_bayes(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table()
    for name, gauc in {"popularity": 0.5, "bayes": 0.9}.items():
        scorer = make_result(gauc=gauc, validation=0.0)
        bare = Result(metrics=scorer.metrics, replicates=scorer.replicates, cost=None)
        write_result(table.untrained_directory("tiny") / name, bare)
    for model, gauc in {"none": 0.6, "pooled": 0.7}.items():
        for cell in table.tuning_cells("tiny", model):
            finish(cell, make_result(gauc=gauc, validation=gauc))
    rows = {row.name: row for row in summarize(table, "tiny").rows}
    assert list(rows) == ["popularity", "bayes", "none", "pooled"]
    assert rows["pooled"].gap_closed == pytest.approx(1 / 3)
    assert rows["none"].gap_closed == 0.0
    assert rows["bayes"].to_reference["gauc"].mean == pytest.approx(0.2)
    assert "| *bayes* | 0.9000 |" in squeezed(write_table(table))


def test_results_of_different_test_splits_are_not_mixed(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table()
    result = make_result(gauc=0.7, validation=0.7)
    for cell in table.tuning_cells("tiny", "pooled"):
        finish(cell, result)
    other = Result(
        metrics={**result.metrics, "num_users": 99}, replicates=result.replicates, cost=result.cost
    )
    for cell in table.tuning_cells("tiny", "none"):
        finish(cell, other)
    with pytest.raises(ConfigError, match=r"tiny: none, seed 0 was tested on .*num_users = 99"):
        summarize(table, "tiny")
