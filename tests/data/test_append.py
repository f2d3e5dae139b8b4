"""A dataset with appended days reads as one that was made of the whole log at once."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cdp_torchrec.commands import prepare_data
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.data.config import DataConfig, VocabularyConfig
from cdp_torchrec.data.days import load_days, load_grown_schema, read_schema, segments
from cdp_torchrec.data.history_lookup import HistoryLookup
from cdp_torchrec.data.history_segments import SegmentedHistory, open_history
from cdp_torchrec.data.history_store import Behaviours, BehaviourSource, HistoryStore
from cdp_torchrec.data.identity import mismatch
from cdp_torchrec.data.layout import _table
from cdp_torchrec.data.manifest import find_damage
from cdp_torchrec.data.prepare import append
from cdp_torchrec.data.prepare.append import append_day
from cdp_torchrec.data.prepare.compact import compact
from cdp_torchrec.data.prepare.database import EngineLimits, open_database
from cdp_torchrec.data.prepare.history_files import code_behaviours, write_history
from cdp_torchrec.data.prepare.inspect import describe_dataset
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.prepare.staging import build_dataset
from cdp_torchrec.data.prepare.staging_checks import load_rows
from cdp_torchrec.data.prepare.workplace import PreparationError, changing
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.schema import DatasetError, load_schema
from cdp_torchrec.data.stored_vocabulary import stored_ids, training_counts
from tests.conftest import MakeOnce
from tests.data.staged_log import SPEC, Rows, behaviour, random_log, read_rows, request, stage

DAY_MS = 86_400_000
DAYS = ("1970-01-02", "1970-01-03", "1970-01-04")
PARTS = ("item", "timestamp", "action", "category", "cluster")


def cut(rows: Rows, day: int) -> Rows:
    """Rows of a random log, whose 1,000 moments are 4 days here, that are of one of them."""
    moved = [row | {"timestamp": row["timestamp"] * DAY_MS // 250} for row in rows]
    return [row for row in moved if row["timestamp"] // DAY_MS == day]


def stage_days(folder: Path, days: range, *, seed: int = 0) -> Path:
    requests, behaviours = random_log(seed)
    found = [[row for day in days for row in cut(rows, day)] for rows in (requests, behaviours)]
    return stage(folder, *found)


SPEC_OF_DAYS = replace(SPEC, test_from=DAY_MS * 3 // 4)


def fill(folder: Path) -> None:
    """A dataset of one day with three appended ones, as it was before them, and all at once."""
    build_dataset(stage_days(folder / "base", range(1)), folder / "grown", SPEC_OF_DAYS)
    shutil.copytree(folder / "grown", folder / "before")
    for number in range(1, 4):
        day = stage_days(folder / f"day-{number}", range(number, number + 1))
        append_day(folder / "grown", day)
    build_dataset(stage_days(folder / "all", range(4)), folder / "whole", SPEC_OF_DAYS)


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


def histories(store: BehaviourSource, users: int, categories: int, before: int) -> Iterator[Any]:
    """Everything that the store answers, user by user and category by category."""
    for user in range(users + 2):
        for category in range(-1, categories + 2):
            moments = np.array([before, before // 2, before // 3 * 2 + 1])
            owner = np.full(len(moments), user)
            if category < 0:
                behaviours, slices = store.recent(owner, moments)
            else:
                behaviours, slices = store.gated(owner, np.full(len(moments), category), moments)
            behaviours.check(slices, moments)
            yield columns(behaviours, slices.rows()), slices.lengths.tolist()
            rows = slices.last(3, skip=1).rows()
            yield columns(behaviours, rows)


def columns(behaviours: Behaviours, rows: np.ndarray) -> list[list[int] | None]:
    found = [getattr(behaviours, part) for part in PARTS]
    return [None if column is None else column[rows].tolist() for column in found]


def of_all(dataset: Path) -> list[Any]:
    schema = load_grown_schema(dataset)
    store = open_history(dataset, schema)
    sizes = (schema.entities["user"].num_ids, schema.entities["category"].num_ids)
    return list(histories(store, *sizes, before=5 * DAY_MS))


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


def test_a_store_of_segments_answers_as_one_that_was_compacted(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "grown", tmp_path / "data")
    dataset, schema = tmp_path / "data", load_grown_schema(made / "grown")
    periods = {"train_on": ("train", "test", *DAYS[:2]), "test_on": DAYS[2]}
    segmented = of_all(dataset)
    assert isinstance(open_history(dataset, schema), SegmentedHistory)
    digest = reading(dataset, **periods).training_digest
    assert compact(dataset) == 4
    assert isinstance(open_history(dataset, schema), HistoryStore)
    assert not (dataset / "history").exists()
    assert of_all(dataset) == segmented
    assert find_damage(dataset, active=False) == {}
    assert compact(dataset) == 1
    # A run that was begun before goes on.
    assert reading(dataset, **periods).training_digest == digest
    assert len(segments(dataset, schema.days)) == 1


def reading(dataset: Path, **periods: Any) -> DatasetReader:
    return DatasetReader(DataConfig(dir=dataset, **periods))


def test_a_compacted_store_is_that_of_the_whole_log_at_once(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "grown", tmp_path / "data")
    compact(tmp_path / "data")
    schema = load_grown_schema(made / "grown")
    spec = DatasetSpec.of_dataset(schema)
    with open_database(tmp_path / "work", EngineLimits()) as connection:
        load_rows(connection, made / "all", spec)
        for entity in schema.entities:
            raw = stored_ids(made / "grown", schema, entity)
            table = pa.table({"code": np.arange(1, len(raw) + 1), "raw": raw})
            connection.register("_ids", table)
            connection.execute(f"CREATE TABLE vocabulary_{entity} AS FROM _ids")
        code_behaviours(connection, spec)
        num_ids = {name: entity.num_ids for name, entity in schema.entities.items()}
        write_history(connection, spec, tmp_path / "history", num_ids)
    (merged,) = segments(tmp_path / "data", schema.days)
    for path in (p for p in (tmp_path / "history").rglob("*") if p.is_file()):
        found = merged.root / "history" / path.relative_to(tmp_path / "history")
        assert np.array_equal(np.load(found), np.load(path)), path


def test_batches_of_segments_are_those_of_one_store(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "grown", tmp_path / "data")
    compact(tmp_path / "data")
    lookup = HistoryLookup(
        pool_segments=(1, 2), gated=True, recent=True, clustered=True, whole=True
    )
    found = []
    for dataset in (made / "grown", tmp_path / "data"):
        reader = reading(dataset, test_on=DAYS[2])
        layout = reader.layout(lookup, history_counts=True)
        order = reader.impressions("test")
        assembler = reader.assembler(layout, batch_size=order.num_impressions, seed=0)
        found.append(assembler.assemble(order.take(0, 0, order.num_impressions), epoch=None))
    segmented, merged = found
    for one, other in (
        (segmented.sparse, merged.sparse),
        (segmented.sequence, merged.sequence),
    ):
        assert one is not None and other is not None
        assert torch.equal(one.values(), other.values())
        assert torch.equal(one.lengths(), other.lengths())
    assert torch.equal(segmented.history_counts, merged.history_counts)
    assert segmented.history_counts.sum() > 0


def test_each_period_is_read_with_the_ids_and_counts_of_its_time(made: Path) -> None:
    dataset = made / "grown"
    days = load_days(dataset, load_schema(dataset))
    by_default = read_schema(DataConfig(dir=dataset))
    assert by_default == load_schema(dataset)
    schema = read_schema(DataConfig(dir=dataset, train_on=("test", DAYS[0]), test_on=DAYS[1]))
    assert (schema.trained_days, len(schema.days)) == (1, 2)
    assert schema.entities == days[1].entities
    assert schema.splits["test"] == days[1].requests
    both = by_default.splits["test"].requests + days[0].requests.requests
    assert schema.splits["train"].requests == both
    reader = reading(dataset, train_on=("test", DAYS[0]), test_on=DAYS[1])
    train, test = reader.impressions("train"), reader.impressions("test")
    assert train.num_impressions == schema.splits["train"].impressions
    last = train.take(0, 0, train.num_impressions).request["timestamp"].max()
    first = test.take(0, 0, test.num_impressions).request["timestamp"].min()
    assert last < days[1].requests.first_timestamp == first


@pytest.mark.parametrize("min_count", [1, 3, 30])
def test_rows_of_a_table_stay_and_later_ids_get_the_next_ones(made: Path, min_count: int) -> None:
    dataset, config = made / "grown", VocabularyConfig(min_count=min_count, num_oov_rows=2)
    trained = [("train",), ("test", DAYS[0]), ("test", *DAYS[:2])]
    tests = ["test", DAYS[1], DAYS[2]]
    tables = []
    for train_on, test_on in zip(trained, tests, strict=True):
        schema = read_schema(DataConfig(dir=dataset, train_on=train_on, test_on=test_on))
        tables.append(_table(dataset, schema, "item", config))
        table, counts = tables[-1], training_counts(dataset, schema, "item")
        codes = np.arange(1, schema.entities["item"].num_ids + 1)
        rows = table.rows(codes)
        # Who is frequent has a row of its own, nobody else has, and all rows are used.
        assert (table.has_own_row(codes) == (counts >= min_count)).all()
        own = rows[counts >= min_count]
        assert sorted(own) == list(range(3, table.num_embeddings))
        assert set(rows[counts < min_count]) <= {1, 2}
        assert table.rows(np.array([0])) == 0
    for before, after in pairwise(tables):
        codes = np.arange(1, before.num_ids + 1)
        own = before.has_own_row(codes)
        assert (before.rows(codes)[own] == after.rows(codes)[own]).all()
    if min_count == 3:
        assert tables[0].num_embeddings < tables[1].num_embeddings


def test_what_knew_less_of_a_vocabulary_reads_it_and_another_does_not(made: Path) -> None:
    base, grown = load_schema(made / "before"), load_grown_schema(made / "grown")
    assert base.fingerprint() != grown.fingerprint()
    assert base.digest().vocabularies["item"] != grown.digest().vocabularies["item"]

    def differs(model: Any) -> str | None:
        return mismatch(
            model.digest(), grown.digest(), trained="run", dataset=made / "grown", advice="no"
        )

    assert differs(base) is None
    assert differs(grown) is None
    item = base.entities["item"]
    for changed in ({"digest": "another"}, {"num_ids": item.num_ids - 1}):
        entities = base.entities | {"item": item.model_copy(update=changed)}
        said = differs(base.model_copy(update={"entities": entities}))
        assert said is not None and "vocabulary item" in said
    assert "stages" not in grown.digest().model_dump()


def one_request(folder: Path, **values: Any) -> Path:
    moment = {"timestamp": 4 * DAY_MS + 5}
    return stage(folder, [request(7_000, **moment, **values)], [behaviour(**moment)])


def rewritten(folder: Path, change: Any) -> Path:
    """A good day whose requests were changed as a table."""
    path = one_request(folder) / "requests" / "part-0.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    return folder


BAD = {
    "appended again": (lambda f: stage_days(f, range(3, 4)), "this day was appended before"),
    "an older day": (lambda f: stage_days(f, range(1, 2)), "was appended before, or is older"),
    "an old behaviour": (
        lambda f: stage(
            f, [request(7_000, timestamp=4 * DAY_MS)], [behaviour(timestamp=3 * DAY_MS)]
        ),
        r"behaviours: the first behaviour is of 1970-01-04 .*, not later than",
    ),
    "days that overlap": (
        lambda f: stage(
            f,
            [request(7_000, timestamp=3 * DAY_MS), request(7_001, timestamp=4 * DAY_MS)],
            [behaviour(timestamp=4 * DAY_MS)],
        ),
        "days are appended in the order of time",
    ),
    "a request id of before": (
        lambda f: stage(f, [request(3, timestamp=4 * DAY_MS)], [behaviour(timestamp=4 * DAY_MS)]),
        "request_id r3 is that of another request",
    ),
    "a missing column": (
        lambda f: rewritten(f, lambda table: table.drop_columns(["topic"])),
        "column 'topic' is missing",
    ),
    "another type": (
        lambda f: rewritten(
            f, lambda table: table.set_column(3, "words", pa.array([1.5], pa.float64()))
        ),
        "column 'words' is of type double, expected list",
    ),
    "a column that only the day has": (
        lambda f: rewritten(
            f, lambda table: table.append_column("click_probability", pa.array([[0.1, 0.2]]))
        ),
        "another schema: .*has the column 'click_probability'",
    ),
    "no requests": (lambda f: stage(f, [], [behaviour(timestamp=4 * DAY_MS)]), "has no requests"),
}


def files(dataset: Path) -> list[str]:
    return sorted(str(p.relative_to(dataset)) for p in dataset.rglob("*"))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_day_is_one_message_and_changes_nothing(
    made: Path, tmp_path: Path, name: str
) -> None:
    make, message = BAD[name]
    before = files(made / "grown")
    with pytest.raises(DatasetError, match=message) as raised:
        append_day(made / "grown", make(tmp_path / "day"))
    assert "\n" not in str(raised.value)
    assert files(made / "grown") == before


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
    assert set(files(tmp_path / "data")) == {*before, "days"}
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


def test_two_writers_at_once_are_an_error(made: Path, tmp_path: Path) -> None:
    with (
        changing(made / "grown"),
        pytest.raises(DatasetError, match="another append or compact works on it"),
    ):
        append_day(made / "grown", made / "day-1")


def test_days_that_do_not_follow_each_other_are_an_error(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "grown", tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "days" / DAYS[1])
    with pytest.raises(
        DatasetError, match=f"{DAYS[2]}/day.toml: this day was appended to something"
    ):
        load_grown_schema(tmp_path / "data")


def test_a_damaged_day_is_found(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "grown", tmp_path / "data")
    path = Path("days", DAYS[0], "history/by_time/item.npy")
    content = bytearray((tmp_path / "data" / path).read_bytes())
    content[-1] ^= 1
    (tmp_path / "data" / path).write_bytes(content)
    assert list(find_damage(tmp_path / "data", active=False)) == [str(path)]
    with pytest.raises(DatasetError, match=r"item\.npy: other bytes"):
        open_history(tmp_path / "data", load_grown_schema(tmp_path / "data"))


def test_periods_are_in_the_order_of_time_and_exist(made: Path) -> None:
    with pytest.raises(ConfigError, match="each period must be later"):
        load_config(DataConfig, ["dir=x", "train_on=['test']"])
    with pytest.raises(ConfigError, match="'yesterday' is no period"):
        load_config(DataConfig, ["dir=x", "test_on=yesterday"])
    with pytest.raises(ConfigError, match="has no period '1970-02-01'; it has train, test, 1970"):
        reading(made / "grown", test_on="1970-02-01")


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
