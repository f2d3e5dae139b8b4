"""Choices come from validation alone, and a partial table says what is missing."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.compare.choice import best_point
from cdp_torchrec.compare.ideal_gap import Runs, ideal_share
from cdp_torchrec.compare.output import write_table
from cdp_torchrec.compare.results import (
    METRICS,
    Stratum,
    read_origin,
    read_result,
    write_failure,
    write_result,
)
from cdp_torchrec.compare.statistics import Measured, common_noise, difference
from cdp_torchrec.compare.summary import summarize
from cdp_torchrec.config import ConfigError
from tests.compare.conftest import ORIGIN, MakeResult, MakeTable, finish
from tests.squeeze import squeezed

OTHERS = ("models.a=[]", "models.b=[]")


def test_a_result_reads_back_as_written(tmp_path: Path, make_result: MakeResult) -> None:
    written = make_result(gauc=0.7, validation=0.6)
    path = tmp_path / "cells" / "seed-0.json"
    write_result(path, written, ORIGIN)
    found = read_result(path)
    assert found is not None
    assert (found.metrics, found.cost) == (written.metrics, written.cost)
    assert found.strata.keys() == {"1-5"}
    for name in METRICS:
        assert np.allclose(found.replicates[name], written.replicates[name], rtol=0, atol=1e-5)
    stratum = found.strata["1-5"]
    assert (stratum.gauc, stratum.num_impressions) == (0.7, 40)
    assert np.allclose(stratum.replicates, written.replicates["gauc"], rtol=0, atol=1e-5)
    assert read_origin(path) == ORIGIN


def test_a_value_that_is_undefined_in_some_draws_or_in_all_reads_back_as_such(
    tmp_path: Path, make_result: MakeResult
) -> None:
    draws = np.array([0.5, np.nan, 0.51])
    result = make_result(gauc=0.5, validation=0.6, replicates=draws)
    nowhere = Stratum(gauc=float("nan"), num_impressions=0, replicates=np.full(3, np.nan))
    write_result(tmp_path / "a.json", replace(result, strata={"0": nowhere}), ORIGIN)
    found = read_result(tmp_path / "a.json")
    assert found is not None
    assert np.allclose(found.replicates["auc"], draws, atol=1e-5, equal_nan=True)
    assert np.isnan(found.strata["0"].gauc)
    assert np.isnan(found.strata["0"].replicates).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "a.json: is no result of a cell: remove it"), ('{"version": 0}', "is of version 0")],
)
def test_a_file_that_is_no_result_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_result(tmp_path / "a.json")


def test_a_result_without_one_of_its_parts_is_named(
    tmp_path: Path, make_result: MakeResult
) -> None:
    path = tmp_path / "a.json"
    write_result(path, make_result(gauc=0.7, validation=0.6), ORIGIN)
    whole = json.loads(path.read_text())
    cut = whole["replicates"] | {"auc": whole["replicates"]["auc"][:8]}
    for changed in (
        *({name: part for name, part in whole.items() if name != left_out} for left_out in whole),
        *(whole | {name: [1]} for name in whole),
        whole | {"replicates": cut},
        whole | {"cost": whole["cost"] | {"more": 1}},
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=r"a.json: is (no result|of version)"):
            (read_result(path), read_origin(path))


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
    write_failure(high.directory, "NonFiniteError: step 3", "")
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
    assert "| -0.1000 [-0.1000, -0.1000] | < .0001 * | +0.2000 [+0.2000, +0.2000] |" in text
    assert "Made by `cdp_torchrec compare" in text
    assert "cells by 1.0 (commit abc)." in text
    assert "Strongest baseline: a, by the mean gauc on validation" in text
    assert "The paper has other numbers." in text


def test_the_strongest_baseline_is_told_by_runs_that_all_baselines_have(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    """Seed 1 is luckier, and only one of them has it."""
    table = make_table(*OTHERS)
    for model, by_seed in {"a": (0.7,), "b": (0.6, 0.9), "pooled": (0.5, 0.5)}.items():
        for point in table.points(model):
            for seed, validation in enumerate(by_seed):
                result = make_result(gauc=0.7, validation=validation)
                finish(table.cell("tiny", model, point, seed), result)
    assert summarize(table, "tiny").strongest == "a"


def test_the_worlds_of_a_group_are_the_samples_of_its_table(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    worlds = ("tiny", "second", "third")
    table = make_table(
        *OTHERS,
        *(f'datasets.{world}=["data.toml"]' for world in worlds[1:]),
        f"groups.worlds={list(worlds)}",
    )
    gains = {"none": [-0.3, -0.2, -0.25], "a": [0.02, -0.03, 0.01], "b": [0.01, 0.011, 0.012]}
    for model in table.config.models:
        point = table.points(model)[1]
        for place, world in enumerate(worlds):
            for seed in table.config.seeds:
                gauc = 0.7 + gains.get(model, [0.0] * 3)[place] + 0.001 * seed
                result = make_result(gauc=gauc, validation=0.9)
                finish(table.cell(world, model, point, seed), result)
        finish(table.tuning_cells("tiny", model)[0], make_result(gauc=0.9, validation=0.1))
    rows = {row.name: row for row in summarize(table, "worlds").rows}
    pairs = {name: row.to_reference["gauc"] for name, row in rows.items() if name != "pooled"}
    # A world is a sample: the mean over its seeds.
    samples = {
        name: Measured(
            {world: {0: 0.7 + gain} for world, gain in zip(worlds, of_row, strict=True)},
            {world: {0: np.zeros(2)} for world in worlds},
        )
        for name, of_row in {**gains, "pooled": [0.0] * 3}.items()
    }
    # How far the row without history falls behind is no noise of the others.
    noise = common_noise([sample for name, sample in samples.items() if name != "none"])
    expected = {}
    for name, pair in pairs.items():
        sample = difference(samples[name], samples["pooled"], noise=noise, confidence=0.95)
        assert sample is not None
        assert (pair.num_runs, sample.num_runs) == (6, 3)
        assert (pair.mean, pair.low, pair.high) == pytest.approx(
            (sample.mean, sample.low, sample.high)
        )
        expected[name] = sample.p_value
        assert pair.p_value == pytest.approx(expected[name])
    order = sorted(expected, key=lambda name: expected[name])
    assert order[0] == "none"
    assert pairs["none"].p_holm == pytest.approx(3 * expected["none"])
    assert pairs["none"].is_significant
    text = squeezed(write_table(table))
    assert "## worlds\n\nOver the worlds tiny, second, third." in text
    for name in ("tiny", "second", "third"):
        assert f"## {name}" in text
    written = json.loads((table.run_dir / "table.json").read_text())["tables"]["worlds"]
    by_seed = {row["name"]: row["metrics"]["gauc"]["by_seed"] for row in written["rows"]}
    assert by_seed["b"]["third"] == pytest.approx({"0": 0.712, "1": 0.713})


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
    written = json.loads((table.run_dir / "table.json").read_text())
    assert written["made_by"]["command"] == table.command
    assert written["made_by"]["cells"] == ["1.0 (commit abc)"]
    found = written["tables"]["tiny"]
    assert len(found["missing"]) == 3
    assert found["rows"][0]["metrics"]["gauc"]["by_seed"] == {"tiny": {"0": 0.7}}
    assert (table.run_dir / "gauc.png").read_bytes().startswith(b"\x89PNG")


def test_of_a_dataset_that_was_not_begun_cells_are_counted(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table('datasets.second=["data.toml"]')
    for cell in table.tuning_cells("tiny", "pooled"):
        finish(cell, make_result(gauc=0.7, validation=0.7))
    text = squeezed(write_table(table))
    assert "Not begun: second (4 cells)." in text
    assert "second/" not in text
    write_failure(table.tuning_cells("second", "none")[0].directory, "no disk", "")
    text = squeezed(write_table(table))
    assert "## second\n\nNo finished row." in text
    assert ": no disk\n" in text


def test_untrained_scorers_close_the_gap_to_bayes(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table()
    for name, gauc in {"popularity": 0.5, "bayes": 0.9}.items():
        scorer = make_result(gauc=gauc, validation=0.0)
        path = table.untrained_directory("tiny") / f"{name}.json"
        write_result(path, replace(scorer, cost=None), ORIGIN)
    for model, gauc in {"none": 0.6, "pooled": 0.7}.items():
        for cell in table.tuning_cells("tiny", model):
            finish(cell, make_result(gauc=gauc, validation=gauc))
    rows = {row.name: row for row in summarize(table, "tiny").rows}
    assert list(rows) == ["popularity", "bayes", "none", "pooled"]
    assert rows["pooled"].gap_closed == pytest.approx(1 / 3)
    assert rows["none"].gap_closed == 0.0
    assert rows["bayes"].to_reference["gauc"].mean == pytest.approx(0.2)
    assert "| *bayes* | 0.9000 |" in squeezed(write_table(table))


def test_a_gap_is_closed_in_the_worlds_that_a_row_has(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    worlds = ["tiny", "second"]
    table = make_table('datasets.second=["data.toml"]', f"groups.worlds={worlds}")
    for world, level in (("tiny", 0.5), ("second", 0.8)):
        scorer = replace(make_result(gauc=level + 0.1, validation=0.0), cost=None)
        write_result(table.untrained_directory(world) / "bayes.json", scorer, ORIGIN)
        for point in table.points("none"):
            finish(table.cell(world, "none", point, 0), make_result(gauc=level, validation=level))
    for cell in table.tuning_cells("tiny", "pooled"):
        finish(cell, make_result(gauc=0.55, validation=0.5))
    rows = {row.name: row for row in summarize(table, "worlds").rows}
    assert rows["pooled"].gap_closed == pytest.approx(0.5)
    for point in table.points("none"):
        finish(table.cell("tiny", "none", point, 0), make_result(gauc=0.6, validation=0.6))
    rows = {row.name: row for row in summarize(table, "worlds").rows}
    assert rows["pooled"].gap_closed is None


def test_where_gauc_is_undefined_no_gap_is_closed(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table, result = make_table(), make_result(gauc=0.5, validation=0.6)
    nowhere = np.full_like(result.replicates["gauc"], np.nan)
    result = replace(
        result,
        metrics={**result.metrics, "gauc": None},
        replicates={**result.replicates, "gauc": nowhere},
    )
    for name in ("bayes", "ideal", "ideal_no_history"):
        path = table.untrained_directory("tiny") / f"{name}.json"
        write_result(path, replace(result, cost=None), ORIGIN)
    for model in ("none", "pooled"):
        for cell in table.tuning_cells("tiny", model):
            finish(cell, result)
    assert "nan" not in write_table(table)
    assert "NaN" not in (table.run_dir / "table.json").read_text()


def test_the_ideal_observer_says_what_share_of_a_history_a_row_uses(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table()
    for name, gauc in {"ideal_no_history": 0.6, "ideal": 0.8}.items():
        scorer = make_result(gauc=gauc, validation=0.0)
        if name == "ideal":
            scorer = replace(scorer, metrics={**scorer.metrics, "observer_error": 0.004})
        path = table.untrained_directory("tiny") / f"{name}.json"
        write_result(path, replace(scorer, cost=None), ORIGIN)
    for model, gauc in {"none": 0.6, "pooled": 0.75}.items():
        for cell in table.tuning_cells("tiny", model):
            finish(cell, make_result(gauc=gauc, validation=gauc))
    shares = {row.name: row.ideal_share for row in summarize(table, "tiny").rows}
    assert {name: pytest.approx(found.share) for name, found in shares.items() if found} == {
        "ideal_no_history": 0.0,
        "ideal": 1.0,
        "none": 0.0,
        "pooled": 0.75,
    }
    # A higher bound makes the share smaller: .15 / .204 is .735.
    assert shares["pooled"] is not None and shares["ideal"] is not None
    assert shares["pooled"].error == pytest.approx(0.75 * 0.004 / 0.2)
    assert shares["ideal"].error == 0.0
    text = squeezed(write_table(table))
    assert "ideal gap closed" in text and "75.0% +/- 1.5%" in text
    written = json.loads((table.run_dir / "table.json").read_text())["tables"]["tiny"]["rows"]
    assert written[-1]["ideal_gap_closed"]["share"] == pytest.approx(0.75)


def test_errors_of_the_observer_in_several_worlds_are_independent(make_result: MakeResult) -> None:
    def runs(gauc: float, **metrics: float) -> Runs:
        found = make_result(gauc=gauc, validation=0.0)
        found = replace(found, metrics={**found.metrics, **metrics})
        return {world: {0: found} for world in "ab"}

    rows = {"ideal": runs(0.8, observer_error=0.004), "ideal_no_history": runs(0.6)}
    share = ideal_share(rows | {"pooled": runs(0.75)}, "pooled")
    assert share is not None
    assert share.share == pytest.approx(0.75)
    assert share.error == pytest.approx(0.75 * 0.004 / 0.2 / math.sqrt(2))


def test_results_of_different_test_splits_are_not_mixed(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table()
    result = make_result(gauc=0.7, validation=0.7)
    for cell in table.tuning_cells("tiny", "pooled"):
        finish(cell, result)
    other = replace(result, metrics={**result.metrics, "num_users": 99})
    for cell in table.tuning_cells("tiny", "none"):
        finish(cell, other)
    with pytest.raises(ConfigError, match=r"tiny: none, seed 0 was tested on .*num_users = 99"):
        summarize(table, "tiny")
