"""The mappings of the package read the official formats, with their traps."""

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands.prepare_data import main
from cdp_torchrec.config import load_config
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.experiment_config import ExperimentConfig
from tests.data import shipped_logs
from tests.data.shipped_logs import APRIL_2022, DECEMBER, MAY_2017, seconds
from tests.data.trivago_events import Rows, decoded
from tests.paths import CONFIGS

MAPPINGS = sorted(path.stem for path in (CONFIGS / "mappings").glob("*.toml"))


def prepared(folder: Path, name: str, *settings: str) -> Rows:
    """Requests of the made-up log of this name, read by its mapping."""
    getattr(shipped_logs, f"write_{name}")(folder / name)
    return prepared_from(folder / name, folder / "data", name, *settings)


def prepared_from(source: Path, output: Path, name: str, *settings: str) -> Rows:
    folders = ["--input", str(source), "--output", str(output)]
    main(["generic", f"configs/mappings/{name}.toml", *settings, *folders])
    schema = load_schema(output)
    data = layer(name)
    assert {*data.data.vocabulary} <= {*schema.entities}
    assert {*data.model.interaction.exclude} <= {feature.name for feature in schema.features}
    return decoded(output)


def layer(name: str) -> ExperimentConfig:
    """A training with the data layer of this log."""
    return load_config(
        ExperimentConfig, [f"configs/data/{name}.toml", "configs/interest/none.toml"]
    )


def some(row: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


@pytest.mark.parametrize("name", MAPPINGS)
def test_every_mapping_of_the_package_has_a_layer_and_a_made_up_log(name: str) -> None:
    mapping = load_config(MappingConfig, [f"configs/mappings/{name}.toml"])
    assert mapping.name == name
    assert layer(name).data.dir == Path("data") / name
    assert hasattr(shipped_logs, f"write_{name}")


def test_alimama_has_categories_in_its_histories_and_no_null_brands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = prepared(tmp_path, "alimama")
    first = 1000 * seconds(12, 10, month_start=MAY_2017)
    assert [some(r, "user_id", "timestamp", "item_id", "label") for r in rows] == [
        ("7", first, ["1", "2"], [0, 1]),
        ("7", first + 86_400_000, ["2", "1"], [0, 1]),
        ("8", first + 86_400_000, ["1"], [0]),
    ]
    assert some(rows[0], "category_id", "brand", "hour") == (["5", "6"], [None, None], "10")
    assert rows[0]["price"] == [170.0, 9.99]
    assert some(rows[0], "age_level", "pvalue_level", "new_user_class_level") == ("5", None, "2")
    assert rows[2]["age_level"] is None
    assert [row["history_length"] for row in rows] == [2, 3, 1]
    assert "1 of 4 rows left out: 'time_stamp' is outside of the window" in caplog.text
    vocabulary = tmp_path / "data" / "vocabulary"
    actions = pq.read_table(vocabulary / "action.parquet")["raw"].to_pylist()
    assert set(actions) == {"pv", "buy", "click"}
    items = pq.read_table(vocabulary / "item.parquet")["raw"].to_pylist()
    assert set(items) == {"1", "2", "5/31", "6/"}


@pytest.mark.slow
def test_taobao_leaves_out_stray_times_and_draws_negatives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = prepared(tmp_path, "taobao", "sampling.share=1.0")
    nine = 1000 * seconds(2, 9, month_start=DECEMBER)
    assert some(rows[0], "user_id", "timestamp", "hour") == ("1", nine, "9")
    assert [row["history_length"] for row in rows if row["user_id"] == "1"] == [2, 3, 4]
    # The pages opened so far: 11, 12 and 13; before that of 10, nobody had opened it.
    assert sorted(rows[0]["item_id"]) == ["11", "12", "13"]
    assert "2 of 17 rows left out" in caplog.text
    assert load_schema(tmp_path / "data").history.num_behaviours == 15
    assert "negatives of each of 8 positives are drawn" in load_schema(tmp_path / "data").source


@pytest.mark.slow
@pytest.mark.parametrize("name", ["movielens", "movielens_1m"])
def test_movielens_takes_four_stars_for_a_click_and_the_first_genre(
    tmp_path: Path, name: str
) -> None:
    rows = prepared(tmp_path, name, "split.test_share=0.4")
    assert [some(row, "item_id", "label") for row in rows] == [
        (["10", "11"], [1, 0]),
        (["10", "12"], [1, 0]),
        (["12", "11"], [1, 0]),
    ]
    genre, none = ("Comedy", None) if name == "movielens" else ("Drama", "Horror")
    assert [row["category_id"] for row in rows] == [
        [genre, "Action"],
        [genre, none],
        [none, "Action"],
    ]
    assert [row["history_length"] for row in rows] == [0, 0, 1]
    if name == "movielens_1m":
        assert some(rows[1], "gender", "age", "occupation") == ("M", "56", "16")


@pytest.mark.slow
def test_kuairand_reads_both_periods_and_no_random_insertions(tmp_path: Path) -> None:
    rows = prepared(tmp_path, "kuairand")
    assert [some(row, "item_id", "label", "tab") for row in rows] == [
        (["5", "6"], [1, 0], "1"),
        (["6", "5"], [1, 0], "4"),
    ]
    assert rows[0]["timestamp"] == 1000 * seconds(20, 21.5, month_start=APRIL_2022)
    assert some(rows[0], "hour", "weekday", "category_id") == ("21", "2", ["12", None])
    assert some(rows[1], "follow_user_num_range", "history_length") == ("(0,10]", 1)
    assert rows[0]["duration_ms"] == [12000, 12000]


def test_the_official_sample_of_taobao_gives_a_request_for_each_known_page(tmp_path: Path) -> None:
    source = os.environ.get("CDP_TORCHREC_TAOBAO")
    if not source:
        pytest.skip("CDP_TORCHREC_TAOBAO does not name a directory of UserBehavior.csv")
    rows = prepared_from(Path(source), tmp_path / "data", "taobao", "sampling.share=1.0")
    assert len(rows) == 302
    assert load_schema(tmp_path / "data").history.num_behaviours == 4999
    assert all(sum(row["label"]) == 1 for row in rows)
