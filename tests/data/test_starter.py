"""The starter layer is a configuration that fits the log, and every line of it says why."""

import math
import shlex
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands.prepare_data import main
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.continuation import load_training
from cdp_torchrec.data.own_starter import check_starters
from cdp_torchrec.data.prepare.staging import build_dataset
from cdp_torchrec.data.prepare.starter import (
    next_command,
    read_statistics,
    starter_layer,
    write_starter,
)
from cdp_torchrec.data.schema import STARTER, DatasetError, Feature, load_schema
from cdp_torchrec.experiment_config import ExperimentConfig
from tests.data.staged_log import SPEC, behaviour, request, stage
from tests.paths import CONFIGS


def layer_of(dataset: Path) -> dict[str, Any]:
    return tomllib.loads((dataset / STARTER).read_text())


def small_log(directory: Path, *, with_history: bool = True, old: int = 1) -> Path:
    """80 requests of ten candidates of whom one is clicked; some are one old item."""
    requests = [
        request(
            number,
            timestamp=100 + 10 * number,
            user_id=f"u{number % 7}",
            topic="shoes",
            words=["red"],
            item_id=[f"i{number}-{c}" if c >= old else "old" for c in range(10)],
            category_id=["shoes", "hats"] * 5,
            price=[1.0] * 10,
            label=[0] * 9 + [1],
        )
        for number in range(80)
    ]
    past = [behaviour(user_id=f"u{user}" if with_history else "nobody") for user in range(7)]
    spec = replace(
        SPEC,
        features=(
            *SPEC.features,
            Feature(name="day", role="context", level="request", kind="id", entity="day"),
        ),
    )
    for number, row in enumerate(requests):
        row["day"] = "sunday" if row["timestamp"] >= spec.test_from else f"day{number % 3}"
    dataset = directory / "data"
    staging = stage(directory / "staging", [], past)
    write(staging / "requests" / "part-0.parquet", requests)
    build_dataset(staging, dataset, spec)
    return dataset


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_log(tmp_path_factory.mktemp("starter"))


@pytest.mark.parametrize("interest", sorted(p.stem for p in (CONFIGS / "interest").glob("*.toml")))
def test_it_is_a_configuration_for_every_module(dataset: Path, interest: str) -> None:
    layers = [str(dataset / STARTER), str(CONFIGS / "interest" / f"{interest}.toml")]
    config = load_config(ExperimentConfig, layers)
    assert config.data.dir == dataset
    names = {f.name for f in load_schema(dataset).features}
    assert {*config.data.exclude_features, *config.model.interaction.exclude} <= names


def test_every_setting_that_the_log_decides_says_why(dataset: Path) -> None:
    lines = (dataset / STARTER).read_text().splitlines()
    for number, line in enumerate(lines):
        if " = " in line and not line.startswith("#"):
            explained = "#" in line or lines[number - 1].startswith("#")
            assert explained or line.startswith(("lr", "count_segments", "history_counts")), line
    assert max(map(len, lines)) <= 100 or str(dataset) in max(lines, key=len)


def item_section(dataset: Path, counts: list[int], *, known: bool) -> tuple[int, str]:
    """min_count of items with these training counts, and the comment above it."""
    schema = load_schema(dataset)
    log = read_statistics(dataset, schema)
    codes = np.zeros(len(counts) + 1, int)
    codes[1 if known else -1] = 100
    log = replace(
        log,
        training_counts={**log.training_counts, "item": np.array(counts)},
        test_codes={**log.test_codes, "item_id": codes},
    )
    text = starter_layer(schema, log, dataset)
    comment = text.split("[data.vocabulary.item]")[1].split("min_count")[0].replace("\n# ", " ")
    return tomllib.loads(text)["data"]["vocabulary"]["item"]["min_count"], comment


@pytest.mark.parametrize(("known", "clicks", "kept"), [(True, 5, 140), (False, 25, 40)])
def test_an_id_needs_more_clicks_for_a_row_of_its_own_where_others_replace_it(
    dataset: Path, known: bool, clicks: int, kept: int
) -> None:
    train = load_schema(dataset).splits["train"]
    counts = [400] * 40 + [100] * 100 + [1] * 60
    minimum, comment = item_section(dataset, counts, known=known)
    assert minimum == math.ceil(clicks * train.impressions / train.clicks)
    assert f"{kept} of 200 ids have a row of their own (about {clicks} clicks)" in comment
    assert f"{sum(counts[:kept]) / sum(counts):.1%} of the training" in comment


@pytest.mark.parametrize(
    ("counts", "minimum"),
    [
        ([40] * 10 + [30] * 20 + [5] * 1000, 30),  # a tenth of the training
        ([40] * 5 + [20] * 5 + [3] * 1000, 20),  # rows that are seen less learn little
        ([7] * 3 + [2] * 1000, 7),  # a sample of a log
        ([1] * 200 + [0] * 50, 1),
    ],
)
def test_no_table_is_left_without_rows_where_hardly_any_id_has_so_many_clicks(
    dataset: Path, counts: list[int], minimum: int
) -> None:
    found, comment = item_section(dataset, counts, known=False)
    assert found == minimum
    assert "(0 at 250, which stands for about 25 clicks)" in comment


def test_batch_and_passes_give_a_few_hundred_steps(tiny_dataset: Path) -> None:
    layer = layer_of(tiny_dataset)
    train = load_schema(tiny_dataset).splits["train"]
    trainer, held_out = layer["trainer"], layer["data"]["validation_fraction"]
    steps = (1 - held_out) * train.impressions // trainer["global_batch_size"]
    assert 190 <= steps < 400
    assert 300 <= steps * trainer["max_epochs"] <= 1200
    assert trainer["validate_every_steps"] == pytest.approx(steps / 2, abs=1)
    assert 0.02 <= held_out <= 0.2


def test_features_that_say_nothing_are_not_read(dataset: Path) -> None:
    text = (dataset / STARTER).read_text()
    assert layer_of(dataset)["data"]["exclude_features"] == ["words", "day"]
    assert "words: has one value in training; day: 100% of its test values never occur" in (
        text.replace("\n# ", " ")
    )


def test_ids_that_the_test_split_hardly_knows_stay_out_of_the_tower(dataset: Path) -> None:
    assert "item_id" in layer_of(dataset)["model"]["interaction"]["exclude"]
    assert "category_id" not in layer_of(dataset)["model"]["interaction"]["exclude"]


def test_a_log_without_histories_gets_a_model_without(tmp_path: Path) -> None:
    dataset = small_log(tmp_path, with_history=False)
    assert next_command(dataset).endswith("configs/interest/none.toml")
    assert "history_counts" not in layer_of(dataset)["model"]["interaction"]
    assert "No training request has a behaviour before it" in (dataset / STARTER).read_text()


@pytest.mark.parametrize(("half", "kept"), [(100, 100), (101, 200)])
def test_long_histories_are_kept_longer(tiny_dataset: Path, half: int, kept: int) -> None:
    schema = load_schema(tiny_dataset)
    log = read_statistics(tiny_dataset, schema)
    log = replace(log, history_lengths=np.full_like(log.history_lengths, half))
    layer = tomllib.loads(starter_layer(schema, log, tiny_dataset))
    assert layer["data"]["history"]["max_length"] == kept


def test_it_is_written_anew_and_the_next_command_is_shown(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / 'a "new" place'
    copy.symlink_to(dataset)
    before = (dataset / STARTER).read_text()
    main(["starter", str(copy)])
    wrote, train = capsys.readouterr().out.splitlines()
    assert wrote == f"wrote {copy / STARTER}"
    command = shlex.split(train.removeprefix("train with:"))
    assert command[:3] == ["cdp_torchrec", "train", str(copy / STARTER)]
    assert layer_of(dataset)["data"]["dir"] == str(copy)
    write_starter(dataset)
    assert (dataset / STARTER).read_text() == before


def test_the_starter_of_a_copied_dataset_does_not_read_the_original(
    tmp_path: Path, dataset: Path
) -> None:
    write_starter(dataset)
    arguments = [str(dataset / STARTER), "configs/interest/cdp.toml"]
    check_starters(arguments, dataset)
    copy = shutil.copytree(dataset, tmp_path / "copy")
    arguments[0] = str(copy / STARTER)
    with pytest.raises(ConfigError) as error:
        load_training([str(copy / STARTER), str(CONFIGS / "interest" / "cdp.toml")])
    assert f"data.dir: {copy / STARTER} names {dataset}, but lies in" in str(error.value)
    assert f"add data.dir={copy} (or data.dir={dataset})" in str(error.value)
    check_starters([*arguments, f"data.dir={dataset}"], dataset)
    check_starters([*arguments, "other.toml"], tmp_path / "of_another_layer")
    main(["starter", str(copy)])
    check_starters(arguments, copy)
    moved = copy.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="copied or moved"):
        check_starters([str(moved / STARTER)], copy)


def test_a_directory_without_a_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"is no dataset directory: schema\.toml is missing"):
        write_starter(tmp_path)
