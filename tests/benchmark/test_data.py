"""The data benchmark reads the same batches from both layouts, and counts what it reads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cdp_torchrec.benchmark.data.case import ReadingCase
from cdp_torchrec.benchmark.data.config import DataSettings
from cdp_torchrec.benchmark.data.counted import CountedStore
from cdp_torchrec.benchmark.data.inline import write_inline
from cdp_torchrec.benchmark.data.log import make_dataset
from cdp_torchrec.benchmark.rows import SYNTHETIC, row_files
from cdp_torchrec.commands import benchmark
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.data.packed import pack
from cdp_torchrec.experiment_config import ExperimentConfig

LENGTH = 30
TINY = DataSettings(
    rows=("pooled", "sim_hard", "din"),
    num_categories=3,
    num_items=90,
    num_users=5,
    requests_per_user=4,
    num_candidates=3,
    batch_size=16,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("log")
    make_dataset(found, LENGTH, TINY)
    case = reading(found, "pooled")
    write_inline(found / "dataset", case.reader.store, found / "inline")
    return found


def reading(directory: Path, row: str) -> ReadingCase:
    config = load_config(ExperimentConfig, [str(SYNTHETIC), str(row_files([row])[row])])
    return ReadingCase(directory / "dataset", directory / "inline", LENGTH, config, TINY)


@pytest.mark.parametrize("row", TINY.rows)
def test_both_layouts_give_the_same_batches(directory: Path, row: str) -> None:
    case = reading(directory, row)
    stored, inline = list(case.from_store()), list(case.from_inline())
    counted = list(case.batches(CountedStore(case.reader.store)))
    assert len(stored) == -(-case.num_impressions // TINY.batch_size)
    for others in (inline, counted):
        for one, other in zip(stored, others, strict=True):
            assert torch.equal(pack(one).memory, pack(other).memory)


def test_a_history_has_the_length_that_is_measured(directory: Path) -> None:
    for batch in reading(directory, "din").from_store():
        lengths = batch.history_length[batch.weights > 0]
        assert (lengths == LENGTH).all()


def test_what_is_taken_out_of_a_column_is_counted(directory: Path) -> None:
    store = CountedStore(reading(directory, "pooled").reader.store)
    user, before = np.array([1]), np.array([2**60])
    behaviours, slices = store.recent(user, before)
    searched = store.tally.read
    assert 8 <= searched <= 8 * 2 * LENGTH
    _ = behaviours.item[slices.rows()]
    assert store.tally.read == searched + 4 * LENGTH


@pytest.mark.slow
def test_the_benchmark_has_a_row_for_each_length_and_leaves_no_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = TINY.model_copy(update={"rows": ("pooled",), "lengths": (4, 8)}).model_dump()
    small = {name: settings[name] for name in settings if name not in ("scratch", "output")}
    small |= {"rounds": 1, "workers": [0], "worker_batches": 2}
    layer = tmp_path / "small.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in small.items()]
    layer.write_text("\n".join(["[benchmark]", *lines]))
    scratch, output = tmp_path / "scratch", tmp_path / "out"
    benchmark.main(
        ["data", str(layer), f"benchmark.scratch={scratch}", f"benchmark.output={output}"]
    )
    said = capsys.readouterr().out
    assert said.count("| `pooled`") == 6
    assert list(scratch.iterdir()) == []
    numbers = json.loads((output / "data.json").read_text())
    assert [found["length"] for found in numbers["lengths"]] == [4, 8]
    found = numbers["lengths"][1]["rows"][0]
    assert found["per_second"].keys() == {"store", "inline"}
    assert found["bytes_read"]["store"] > found["bytes_read_again"] > 0


def test_a_scratch_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"benchmark\.scratch = .*file"):
        benchmark.main(["data", f"benchmark.scratch={tmp_path / 'file' / 'in'}"])
