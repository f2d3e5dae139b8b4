"""Gains along dials, activity and rows are the paired differences of the finished cells."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cdp_torchrec.compare.gains import find_gains
from cdp_torchrec.compare.output import write_table
from cdp_torchrec.compare.results import Result, Stratum
from cdp_torchrec.compare.summary import summarize
from cdp_torchrec.config import ConfigError
from tests.compare.conftest import MakeResult, MakeTable, finish

TABLE = (
    'reference="a"',
    'floors=["none"]',
    "models.a=[]",
    "models.b=[]",
    'datasets.second=["data.toml"]',
    'datasets.third=["data.toml"]',
    'groups.worlds=["second", "third"]',
    'grid={"optimizer.dense.lr"=[0.001]}',
    'gains={over=["none", "pooled"], dials={noise={tiny=0.1, worlds=4.0}}, rows={steps={a=4, b=0}}',
)


def with_strata(result: Result, gains: dict[str, float]) -> Result:
    draws = np.random.default_rng(1).normal(0, 0.01, 50)
    strata = {
        label: Stratum(gauc=gauc, num_impressions=9, replicates=gauc + draws)
        for label, gauc in gains.items()
    }
    return replace(result, strata=strata)


def test_gains_are_drawn_along_dials_activity_and_rows(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table(*TABLE[:-1], TABLE[-1] + ', of=["tiny"]}')
    levels = {"none": 0.5, "pooled": 0.7, "a": 0.75, "b": 0.71}
    worlds = {"tiny": 0.0, "second": 0.01, "third": 0.03}
    for model, level in levels.items():
        for world, extra in worlds.items():
            gauc = level + (model == "a") * extra
            for cell in table.chosen_cells(world, model, table.points(model)[0]):
                result = make_result(gauc=gauc, validation=0.9)
                cold = {"0": float("nan"), "1-5": gauc - 0.2 * (model == "pooled"), "6-20": gauc}
                finish(cell, with_strata(result, cold))
    summaries = [summarize(table, name) for name in ("worlds", *worlds)]
    dial, activity, rows = find_gains(table.config, summaries)
    over_pooled = [(p.label, p.gain.mean, p.gain.num_runs) for p in dial.curves["pooled"]]
    assert over_pooled == [("0.1", pytest.approx(0.05), 2), ("4", pytest.approx(0.07), 4)]
    assert dial.is_logarithmic
    assert [p.gain.mean for p in dial.curves["none"]] == pytest.approx([0.25, 0.27])
    assert {p.label: round(p.gain.mean, 6) for p in activity.curves["pooled"]} == {
        "1-5": 0.25,
        "6-20": 0.05,
    }
    assert [(p.place, round(p.gain.mean, 6)) for p in rows.curves["pooled"]] == [
        (0.0, 0.01),
        (4.0, 0.05),
    ]
    assert not rows.is_logarithmic
    write_table(table)
    assert (table.run_dir / "gains.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((table.run_dir / "table.json").read_text())["gains"]
    assert [panel["axis"] for panel in written][::2] == ["noise", "steps"]
    assert written[0]["gains_over"]["pooled"][1]["mean"] == pytest.approx(0.07)


def test_without_finished_rows_there_is_no_panel(
    make_table: MakeTable, make_result: MakeResult
) -> None:
    table = make_table(*TABLE[:-1], TABLE[-1] + "}")
    for cell in table.tuning_cells("tiny", "a"):
        finish(cell, make_result(gauc=0.7, validation=0.7))
    write_table(table)
    assert not (table.run_dir / "gains.png").exists()


@pytest.mark.parametrize(
    ("gains", "message"),
    [
        ('over=["nome"]', "gains.over = ['nome']: there is no row 'nome'"),
        ('over=["pooled"],rows={steps={nome=1}}', "there is no row 'nome' in models"),
        (
            'over=["pooled"],dials={noise={huge=1}}',
            "there is no 'huge' in groups and datasets, only tiny",
        ),
        ('of=["tiny"]', 'gains.of = ["tiny"]: has no effect without gains.over'),
        ('over=["pooled"],of=["huge"]', "there is no 'huge' in groups and datasets, only tiny"),
    ],
)
def test_gains_of_what_is_not_compared_are_refused(
    make_table: MakeTable, gains: str, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make_table(f"gains={{{gains}}}")
    assert message in str(error.value).replace('["nome"]', "['nome']")
