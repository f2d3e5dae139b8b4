"""A file of requests is scored as the predictor scores them, on any number of ranks, or not."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import ParquetWriter

from cdp_torchrec.commands.predict import main
from cdp_torchrec.serving import request_file
from cdp_torchrec.serving.predict import predict_file
from cdp_torchrec.serving.predict_config import PredictConfig
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Behaviours, Request
from cdp_torchrec.serving.request_file import RequestFileError, RequestFiles
from tests.distributed.spawn import run_ranks
from tests.serving.conftest import one_rank


@pytest.fixture
def alone() -> Iterator[None]:
    with one_rank():
        yield


def row_of(request: Request, number: int) -> dict[str, Any]:
    """A request as a row of the log; `shelf` and `campaign` are columns of the user's own."""
    count = len(request.candidates["item_id"])
    return {
        "request_id": f"r{number}",
        "user_id": request.user,
        "timestamp": request.timestamp_ms,
        **request.features,
        **request.candidates,
        "label": [0] * count,
        "shelf": [f"{number}-{place}" for place in range(count)],
        "campaign": number % 3,
    }


@pytest.fixture
def rows(requests: list[Request]) -> list[dict[str, Any]]:
    return [row_of(request, number) for number, request in enumerate(requests)]


def write(path: Path, rows: list[dict[str, Any]], *, row_group_size: int = 25) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def predict(
    artifact: Path, requests: Path, output: Path, store: Path | None = None, *keep: str
) -> pa.Table:
    predict_file(artifact, requests, PredictConfig(output=output, history_store=store, keep=keep))
    return pq.read_table(output)


def test_a_file_is_scored_like_its_requests_one_by_one(
    artifact: Path,
    predictor: Predictor,
    requests: list[Request],
    rows: list[dict[str, Any]],
    tiny_dataset: Path,
    tmp_path: Path,
    alone: None,
) -> None:
    file = write(tmp_path / "new.parquet", rows)
    found = predict(artifact, file, tmp_path / "scores.parquet", tiny_dataset)
    expected = np.concatenate([predictor.score(request) for request in requests])
    np.testing.assert_allclose(found["probability"].to_numpy(), expected, atol=1e-6)
    assert found.column_names == ["request_id", "user_id", "item_id", "probability"]
    named = [
        (f"r{number}", request.user, item)
        for number, request in enumerate(requests)
        for item in request.candidates["item_id"]
    ]
    assert list(zip(*(found[n].to_pylist() for n in found.column_names[:3]), strict=True)) == named


def test_kept_columns_stand_beside_their_candidates(
    artifact: Path, rows: list[dict[str, Any]], tmp_path: Path, alone: None
) -> None:
    file = write(tmp_path / "new.parquet", rows)
    found = predict(artifact, file, tmp_path / "scores.parquet", None, "shelf", "campaign")
    assert found["shelf"].to_pylist() == [shelf for row in rows for shelf in row["shelf"]]
    assert found["campaign"].to_pylist() == [row["campaign"] for row in rows for _ in row["shelf"]]


def test_behaviours_of_the_file_count_like_those_of_the_store(
    artifact: Path,
    rows: list[dict[str, Any]],
    behaviours: list[Behaviours],
    tiny_dataset: Path,
    tmp_path: Path,
    alone: None,
) -> None:
    stored = predict(artifact, write(tmp_path / "a.parquet", rows), tmp_path / "a", tiny_dataset)
    for row, found in zip(rows, behaviours, strict=True):
        row["history_item"], row["history_timestamp"] = found.item, found.timestamp_ms
        row["history_category"], row["history_action"] = found.category, found.action
    brought = predict(artifact, write(tmp_path / "b.parquet", rows), tmp_path / "b")
    scores = [table["probability"].to_numpy() for table in (stored, brought)]
    np.testing.assert_allclose(*scores, atol=1e-6)


def test_a_signal_leaves_nothing_of_a_prediction(
    artifact: Path,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    alone: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = write(tmp_path / "new.parquet", rows)
    config = PredictConfig(output=tmp_path / "scores.parquet")
    written = ParquetWriter.write_table

    def stopped(*arguments: Any, **named: Any) -> None:
        written(*arguments, **named)
        assert len(list(tmp_path.iterdir())) == 2  # what is there so far
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ParquetWriter, "write_table", stopped)
    with pytest.raises(SystemExit) as caught:
        predict_file(artifact, file, config)
    assert caught.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == [file]


def test_a_number_may_be_missing_as_in_the_files_of_a_dataset(
    artifact: Path, rows: list[dict[str, Any]], tmp_path: Path, alone: None
) -> None:
    scores = []
    for name, missing in (("nan", float("nan")), ("null", None)):
        changed = [row | {"log_price": [missing, *row["log_price"][1:]]} for row in rows]
        file = write(tmp_path / f"{name}.parquet", changed)
        scores.append(predict(artifact, file, tmp_path / name)["probability"].to_pylist())
    assert scores[0] == scores[1]


def on_ranks(artifact: Path, requests: Path, output: Path, store: Path) -> None:
    with mock.patch.object(request_file, "CHUNK", 7):
        predict(artifact, requests, output, store)


@pytest.mark.slow
@pytest.mark.distributed
def test_the_file_is_the_same_for_any_number_of_ranks(
    artifact: Path, rows: list[dict[str, Any]], tiny_dataset: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    for number in range(2):
        write(folder / f"{number}.parquet", rows[30 * number : 30 * number + 30])
    for ranks in (1, 3):
        output = tmp_path / "scores" / f"{ranks}.parquet"
        run_ranks(ranks, on_ranks, artifact, folder, output, tiny_dataset)
    one, three = ((tmp_path / "scores" / f"{ranks}.parquet").read_bytes() for ranks in (1, 3))
    assert one == three
    assert len(list((tmp_path / "scores").iterdir())) == 2, "parts are left behind"


@pytest.mark.parametrize(
    ("number", "change", "words"),
    [
        (4, {"timestamp": None}, r"row 4 \(from 0\): timestamp_ms: expected an integer"),
        (31, {"item_id": []}, r"row 31 \(from 0\): candidates.item_id: the list is empty"),
        (31, {"item_id": None}, r"row 31 \(from 0\): candidates.item_id: expected a list"),
        (59, {"category_id": ["c"]}, r"row 59 \(from 0\): candidates.category_id: 1 values, but"),
        (7, {"shelf": ["one"]}, r"row 7 \(from 0\): column 'shelf' to keep has 1 elements, there"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(
    artifact: Path,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    alone: None,
    number: int,
    change: dict[str, Any],
    words: str,
) -> None:
    rows[number] |= change
    file = write(tmp_path / "new.parquet", rows)
    with pytest.raises(RequestFileError, match=rf"new\.parquet, {words}"):
        predict(artifact, file, tmp_path / "scores.parquet", None, "shelf")
    assert [path.name for path in tmp_path.iterdir()] == ["new.parquet"]


@pytest.mark.parametrize("first", ["r3", 3], ids=["strings", "integers"])
def test_two_requests_with_one_id_are_refused_with_both_places(
    artifact: Path, rows: list[dict[str, Any]], tmp_path: Path, alone: None, first: str | int
) -> None:
    for number, row in enumerate(rows):
        row["request_id"] = number if first == 3 else f"r{number}"
    rows[40]["request_id"] = rows[50]["request_id"] = first
    folder, output = tmp_path / "new", tmp_path / "scores.parquet"
    folder.mkdir()
    write(folder / "a.parquet", rows[:30])
    write(folder / "b.parquet", rows[30:])
    words = rf"b\.parquet, row 10 \(from 0\): request_id {first!r} is that of .*a\.parquet, row 3 "
    with pytest.raises(RequestFileError, match=words):
        predict(artifact, folder, output)
    assert not output.exists()


def test_a_file_that_lacks_something_is_named(
    artifact: Path, rows: list[dict[str, Any]], tmp_path: Path, alone: None
) -> None:
    def refused(file: Path, *keep: str) -> str:
        with pytest.raises(RequestFileError) as refusal:
            predict(artifact, file, tmp_path / "scores.parquet", None, *keep)
        return str(refusal.value)

    good = write(tmp_path / "good.parquet", rows)
    assert "no column ['shelve']; it has ['request_id'" in refused(good, "shelve")
    assert "keep: ['item_id'] are written in any case" in refused(good, "item_id")
    bare = [{name: row[name] for name in row if name != "timestamp"} for row in rows]
    file = write(tmp_path / "bare.parquet", bare)
    assert f"{file}: column 'timestamp' is missing, found" in refused(file)
    brought = [row | {"history_timestamp": [row["timestamp"] - 1]} for row in rows]
    file = write(tmp_path / "brought.parquet", brought)
    assert f"{file}: column 'history_item' is missing, found" in refused(file)
    brought[9]["history_item"] = None
    brought = [
        {"history_item": ["item_0"], "history_category": ["category_0"]} | row for row in brought
    ]
    file = write(tmp_path / "brought.parquet", brought)
    assert "row 9 (from 0): history.item: is required beside the rest of" in refused(file)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert "broken.parquet: damaged or cut off parquet file" in refused(tmp_path / "broken.parquet")
    empty = pa.Table.from_pylist(rows).slice(0, 0)
    pq.write_table(empty, tmp_path / "empty.parquet")
    assert refused(tmp_path / "empty.parquet") == f"{tmp_path / 'empty.parquet'}: holds no request"
    table = pa.Table.from_pylist(rows).drop_columns(["timestamp"])
    moments = pa.array([10**18 + 1] * len(rows), pa.timestamp("ns"))
    pq.write_table(table.append_column("timestamp", moments), tmp_path / "moments.parquet")
    assert "write integers: {'timestamp': 'timestamp[ns]'}" in refused(tmp_path / "moments.parquet")


def test_the_command_says_what_it_did_not_read(
    artifact: Path,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    alone: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write(tmp_path / "new.parquet", rows)
    output = tmp_path / "scores.parquet"
    with mock.patch("cdp_torchrec.commands.predict.init_process_group"):
        main([str(artifact), str(file), f"output={output}", 'keep=["campaign"]'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "not read: label, shelf"
    assert lines[1].startswith("WARNING: the model reads histories, and every one was empty: name")
    count = sum(len(row["item_id"]) for row in rows)
    assert lines[-1] == f"{output}: {count:,} candidates of 60 requests"


def test_the_command_says_how_many_histories_were_empty(
    artifact: Path,
    rows: list[dict[str, Any]],
    tiny_dataset: Path,
    tmp_path: Path,
    alone: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(rows: list[dict[str, Any]]) -> list[str]:
        file = write(tmp_path / "new.parquet", rows)
        settings = [f"output={tmp_path / 'scores.parquet'}", f"history_store={tiny_dataset}"]
        with mock.patch("cdp_torchrec.commands.predict.init_process_group"):
            main([str(artifact), str(file), *settings])
        return [line for line in capsys.readouterr().out.splitlines() if "histor" in line]

    names = ("history_item", "history_timestamp", "history_category")
    some = [
        row | dict(zip(names, (["item_0"], [row["timestamp"] - 1], ["c"]), strict=True))
        for row in rows
    ]
    empty = {name: [] for name in names}
    assert said(some) == []
    assert said([*some[:45], *(row | empty for row in rows[45:])]) == [
        "history empty: 25.0% of the requests"
    ]
    [warned] = said([row | {"user_id": "nobody"} for row in rows])
    assert warned.startswith("WARNING: the model reads histories, and every one was empty: are ")


def test_behaviours_that_no_model_reads_are_named_as_not_read(
    artifact: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    brought = [row | {"history_item": [], "history_timestamp": []} for row in rows]
    file = write(tmp_path / "new.parquet", brought)
    metadata = Predictor.open(artifact).metadata
    for reads_history, unread in ((True, []), (False, ["history_item", "history_timestamp"])):
        told = replace(metadata, reads_history=reads_history)
        found = RequestFiles(file, told, keep=["campaign"]).unread
        assert sorted(found) == [*unread, "label", "shelf"]


def test_what_requests_leave_out_and_training_never_saw_is_said(
    artifact: Path,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    alone: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = [
        {name: value for name, value in row.items() if name != "hour"}
        | {"item_id": [str(place) for place in range(len(row["item_id"]))]}
        | {"user_id": "nobody" if number % 3 else row["user_id"]}
        for number, row in enumerate(rows)
    ]
    file, output = write(tmp_path / "new.parquet", changed), tmp_path / "scores.parquet"
    found = predict_file(artifact, file, PredictConfig(output=output))
    assert found.missing["hour"] == 1.0
    assert found.unknown["item_id"] == 1.0
    assert found.unknown["user_id"] >= 2 / 3
    with mock.patch("cdp_torchrec.commands.predict.init_process_group"):
        main([str(artifact), str(file), f"output={output}"])
    said = capsys.readouterr().out
    assert "not given: hour 100.0%" in said
    assert "never seen in training: item_id 100.0%, user_id " in said
    assert "WARNING: the model knows none of these items" in said


def test_its_help_explains_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    assert "history_store" in shown
    assert "keep" in shown
