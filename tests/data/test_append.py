"""A day is appended as if it had been there from the start, and nothing else changes."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands import prepare_data
from cdp_torchrec.data.days import load_days, load_grown_schema
from cdp_torchrec.data.manifest import find_damage
from cdp_torchrec.data.prepare import append
from cdp_torchrec.data.prepare.append import append_day
from cdp_torchrec.data.prepare.inspect import describe_dataset
from cdp_torchrec.data.prepare.staging import build_dataset
from cdp_torchrec.data.prepare.workplace import PreparationError
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.data.tables.stored_vocabulary import stored_ids
from tests.conftest import MakeOnce
from tests.data.appended_log import DAYS, SPEC_OF_DAYS, files, fill, stage_days
from tests.data.staged_log import Rows, read_rows


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> Path:
    """Do not write into it."""
    return make_once("appended", fill)


def raw_rows(dataset: Path, rows: Rows) -> Rows:
    """Requests with raw ids, without their numbers in the vocabulary."""
    schema = load_grown_schema(dataset)
    ids = {name: [None, *stored_ids(dataset, schema, name).to_pylist()] for name in schema.entities}
    requests = stored_ids(dataset, schema, "request").to_pylist()
    entities = {f.name: f.entity for f in schema.features if f.entity} | {"user_id": "user"}

    def raw(name: str, value: Any) -> Any:
        if name == "request_id":
            return requests[value]
        if name not in entities:
            return value
        known = ids[entities[name]]
        return [known[code] for code in value] if isinstance(value, list) else known[value]

    # Missing numbers are no numbers, which equal nothing.
    return [{name: str(raw(name, value)) for name, value in row.items()} for row in rows]


def test_requests_of_appended_days_are_those_of_the_whole_log(made: Path) -> None:
    days = [f"days/{name}/requests" for name in DAYS]
    grown = raw_rows(made / "grown", read_rows(made / "grown", "train", "test", *days))
    whole = raw_rows(made / "whole", read_rows(made / "whole"))
    assert grown == whole


def test_an_append_changes_nothing_that_was_there(made: Path) -> None:
    for path in (p for p in (made / "before").rglob("*") if p.is_file()):
        assert (
            made / "grown" / path.relative_to(made / "before")
        ).read_bytes() == path.read_bytes()
    assert load_schema(made / "grown") == load_schema(made / "before")
    assert find_damage(made / "grown", active=False) == {}


def test_known_ids_keep_their_codes_and_new_ones_come_behind_them(made: Path) -> None:
    grown, base = load_grown_schema(made / "grown"), load_schema(made / "before")
    for entity in base.entities:
        ids = stored_ids(made / "grown", grown, entity).to_pylist()
        assert (
            ids[: base.entities[entity].num_ids]
            == stored_ids(made / "before", base, entity).to_pylist()
        )
        whole = stored_ids(made / "whole", load_schema(made / "whole"), entity).to_pylist()
        assert sorted(ids) == sorted(whole) and len(set(ids)) == len(ids)


def test_an_append_that_failed_leaves_nothing_and_is_done_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "before", tmp_path / "data")
    before, day = files(tmp_path / "data"), made / "day-1"

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(append, "write_manifest", full)
        with pytest.raises(PreparationError, match="is as it was: No space left"):
            append_day(tmp_path / "data", day)
    assert files(tmp_path / "data") == before
    killed = tmp_path / "data" / "days" / ".1970-01-02.partial-0123"
    (killed / "history").mkdir(parents=True)
    assert find_damage(tmp_path / "data", active=False) == {}
    assert load_days(tmp_path / "data", load_schema(tmp_path / "data")) == ()
    append_day(tmp_path / "data", day)
    assert not killed.exists()
    name = Path("days", DAYS[0])
    for path in (p for p in (made / "grown" / name).rglob("*") if p.is_file()):
        copy = tmp_path / "data" / path.relative_to(made / "grown")
        assert copy.read_bytes() == path.read_bytes()


def test_the_commands_say_what_came_of_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = str(tmp_path / "data")
    shutil.copytree(made / "before", dataset)
    prepare_data.main(["append", dataset, "--input", str(made / "day-1")])
    said = capsys.readouterr().out
    day = load_days(tmp_path / "data", load_schema(tmp_path / "data"))[0]
    assert f"appended {DAYS[0]}: {day.requests.requests} requests" in said
    assert f"""data.test_on='"{DAYS[0]}"'""" in said
    text, _ = describe_dataset(tmp_path / "data")
    assert f"\n{DAYS[0]} " in text
    prepare_data.main(["compact", dataset])
    assert "2 segments of the history are one now" in capsys.readouterr().out
    again, _ = describe_dataset(tmp_path / "data")
    assert again.splitlines()[-5:] == text.splitlines()[-5:]
    prepare_data.main(["verify", dataset])
    assert "are what the preparation wrote" in capsys.readouterr().out


def test_request_ids_of_a_day_may_be_numbers_where_they_were_text(tmp_path: Path) -> None:
    build_dataset(stage_days(tmp_path / "base", range(1)), tmp_path / "data", SPEC_OF_DAYS)
    day = stage_days(tmp_path / "day", range(1, 2))
    (path,) = (day / "requests").iterdir()
    requests = pq.read_table(path)
    numbers = [int(raw.removeprefix("r")) for raw in requests["request_id"].to_pylist()]
    pq.write_table(requests.set_column(0, "request_id", pa.array(numbers)), path)
    append_day(tmp_path / "data", day)
    ids = stored_ids(tmp_path / "data", load_grown_schema(tmp_path / "data"), "request").to_pylist()
    assert ids[0].startswith("r")
    assert sorted(ids[-len(numbers) :]) == sorted(map(str, numbers))
