"""`inspect` on a log small enough to count by hand."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands import prepare_data
from cdp_torchrec.data.plausibility import Finding
from cdp_torchrec.data.prepare import inspect
from cdp_torchrec.data.prepare.inspect import describe_dataset
from cdp_torchrec.data.prepare.staging import DatasetSpec, build_dataset
from cdp_torchrec.data.schema import DatasetError, Feature

SPEC = DatasetSpec(
    name="tiny",
    source="made by hand",
    features=(
        Feature(name="user_id", role="user", level="request", kind="id", entity="user"),
        Feature(name="words", role="query", level="request", kind="ids", entity="word"),
        Feature(name="item_id", role="item", level="candidate", kind="id", entity="item"),
        Feature(name="category_id", role="item", level="candidate", kind="id", entity="category"),
        Feature(name="price", role="item", level="candidate", kind="number"),
    ),
    test_from=86_400_000,
    category_entity="category",
    bayes={"auc": 0.75},
)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """ann knows a pair of shoes and a hat; zoe is new. Item d appears in the test split only."""
    requests = pa.table(
        {
            "request_id": ["r0", "r1", "r2"],
            "user_id": ["ann", "zoe", "ann"],
            "timestamp": [100, 61_000, 90_000_000],
            "words": pa.array([["x"], [], ["x", "y", "z"]], pa.list_(pa.string())),
            "item_id": [["a", "c"], ["b", "a"], ["d", "b"]],
            "category_id": [["shoes", "bags"], ["hats", "shoes"], ["hats", None]],
            "price": [[1.0, 3.0], [1.0, 3.0], [5.0, 5.0]],
            "label": [[1, 0], [0, 0], [1, 0]],
        }
    )
    behaviours = pa.table(
        {
            "user_id": ["ann", "ann"],
            "item": ["a", "b"],
            "category": ["shoes", "hats"],
            "timestamp": [10, 20],
        }
    )
    for name, table in (("requests", requests), ("behaviours", behaviours)):
        (tmp_path / "staging" / name).mkdir(parents=True)
        pq.write_table(table, tmp_path / "staging" / name / "part.parquet")
    build_dataset(tmp_path / "staging", tmp_path / "tiny", SPEC)
    return tmp_path / "tiny"


def described(dataset: Path) -> str:
    text, _ = describe_dataset(dataset)
    return text


def section(text: str, first_cell: str) -> dict[str, list[str]]:
    """Rows of the table whose header begins with that cell, by their own first cell."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"{first_cell}  "))
    rows = {}
    for line in lines[start + 1 :]:
        if not line:
            break
        name, *cells = re.split(r"\s{2,}", line)
        rows[name] = cells
    return rows


def test_splits_are_described(dataset: Path) -> None:
    rows = section(described(dataset), "split")
    times = ["1970-01-01 00:00:00 UTC", "1970-01-01 00:01:01 UTC"]
    assert rows["train"] == ["2", "4", "1", "25.00 %", "2..2, mean 2.00", *times]
    assert rows["test"] == ["1", "2", "1", "50.00 %", "2..2, mean 2.00"] + 2 * [
        "1970-01-02 01:00:00 UTC"
    ]


def test_ids_under_a_minimum_count_are_counted(dataset: Path) -> None:
    # a occurs 3 times in training, b twice, c once, d never.
    rows = section(described(dataset), "entity")
    assert rows["item"] == ["4", "25.00 %", "50.00 %", "100.00 %", "100.00 %"]
    assert rows["word"] == ["3", "66.67 %", "100.00 %", "100.00 %", "100.00 %"]


def test_unseen_and_missing_test_ids_are_counted(dataset: Path) -> None:
    rows = section(described(dataset), "feature")
    assert rows["item_id"] == ["item", "candidate", "id", "50.00 %", "0.00 %", "-", "-"]
    assert rows["category_id"][3:5] == ["0.00 %", "50.00 %"]
    assert rows["words"] == ["query", "request", "ids", "66.67 %", "0.00 %", "-", "-"]
    assert rows["price"] == ["item", "candidate", "number", "-", "-", "2", "1"]


def test_history_before_each_request_is_described(dataset: Path) -> None:
    text = described(dataset)
    rows = section(text, "history")
    quantiles = ["0", "1", "2", "2", "2", "2"]  # of the lengths 2 and 0
    assert rows["train"] == ["1.00", *quantiles, "50.00 %", "100.00 %", "0.00 %"]
    assert rows["test"] == ["2.00", *6 * ["2"], "0.00 %", "0.00 %", "0.00 %"]
    assert "2 behaviours of 2 users" in text


def test_gate_is_described_for_clicked_and_other_impressions(dataset: Path) -> None:
    rows = section(described(dataset), "gate")
    # Half of ann's history is shoes, none of it bags; zoe has no history.
    assert rows["train"] == ["50.00 %", "0.00 %", "0.00 %", "100.00 %"]
    assert rows["test"] == ["50.00 %", "0.00 %", "0.00 %", "100.00 %"]


def test_bound_of_synthetic_data_is_shown(dataset: Path) -> None:
    assert described(dataset).endswith("on the test split: auc 0.7500")


def test_damaged_part_is_named(dataset: Path) -> None:
    path = dataset / "test" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=f"{path}: damaged parquet file"):
        described(dataset)


def test_missing_parts_and_vocabularies_are_named(dataset: Path) -> None:
    (dataset / "test" / "part-00000.parquet").unlink()
    with pytest.raises(DatasetError, match=r"test: no part-\*.parquet there"):
        described(dataset)
    (dataset / "vocabulary" / "word.parquet").unlink()
    with pytest.raises(DatasetError, match=r"word.parquet: cannot read the vocabulary"):
        described(dataset)


def test_directory_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "something.npy", np.zeros(1))
    with pytest.raises(DatasetError, match="is no dataset directory"):
        describe_dataset(tmp_path)


def test_errors_of_the_log_are_an_error_of_the_command(
    dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_data.main(["inspect", str(dataset)])
    monkeypatch.setattr(inspect, "judge", lambda _: [Finding("error", "all clicks are one user's")])
    with pytest.raises(DatasetError, match=r"no sane log looks like this one:\n.*one user's"):
        prepare_data.main(["inspect", str(dataset)])
    assert "error: all clicks are one user's" in capsys.readouterr().out
