"""New rows of a mapped log become the requests that the preparation would make of them."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands.prepare_data import main
from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.prepare import log_tables
from cdp_torchrec.data.prepare.database import EngineLimits
from cdp_torchrec.data.prepare.mapped.generic import prepare_generic, read_log, spec_of
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.prepare.mapped.new_requests import NewRequests, write_new_requests
from cdp_torchrec.data.schema import DatasetError
from tests.conftest import MakeOnce
from tests.data.appended_log import files
from tests.data.mapped_logs import START, mapping_of, write_csv
from tests.data.test_append_mapped import MAPPING, category, impressions, views
from tests.data.test_drawn_negatives import ACTIONS
from tests.data.test_generic import LISTS as OTHER_LISTS
from tests.data.trivago_events import Rows

NUM_DAYS = 2
"""The last of which is the test split, and new."""
WITH_USERS = (
    MAPPING.replace("06-02T12:00:00", "06-02")
    + """
[tables.users]
files = ["users.csv"]
by = "user"
key = "id"

[features.likes]
role = "user"
level = "request"
kind = "ids"
table = "users"
separator = "|"

[features.age]
role = "user"
level = "request"
kind = "number"
table = "users"

[attributes.tag]
kind = "id"
table = "tags"

[tables.tags]
files = ["tags.csv"]
by = "item"
key = "id"
"""
)
LISTS = (
    WITH_USERS.replace('rows = "impression"', 'rows = "request"\nseparator = "|"')
    .replace('item = "item"\nrequest', 'item = "items"\nrequest')
    .replace('"number"\n\n[features.hour]', '"number"\ncolumn = "prices"\n\n[features.hour]')
)
ITEMS_ALONE = OTHER_LISTS[: OTHER_LISTS.index("[features")].replace('category = "category_id"', "")
IN_PARQUET = WITH_USERS.replace('["log.csv"]', '["log.parquet"]\nformat = "parquet"')
LABEL = 'label = {column = "clicks", above = 0}'
ONE_OF = 'label = {column = "clicks", one_of = ["1"]}'
FILLED = 'label = {column = "bought", filled = true}'
CLICKED = 'clicked = "clicked"'
ONLY = "log.only={column='place', one_of=['search']}"

FORMS: dict[str, tuple[str, Sequence[str]]] = {
    "a count of clicks": (WITH_USERS, []),
    "texts": (WITH_USERS.replace(LABEL, ONE_OF), []),
    "a filled column": (WITH_USERS.replace(LABEL, FILLED), []),
    "in the order of hashes": (
        WITH_USERS.replace('derive = "position"', 'column = "place"'),
        ["log.order=hash"],
    ),
    "requests by user and time": (WITH_USERS, ["log.request=[]"]),
    "some of the rows": (WITH_USERS, [ONLY]),
    "lists of labels": (LISTS, []),
    "clicked items": (LISTS.replace(LABEL, CLICKED), []),
    "lists of items alone": (ITEMS_ALONE, []),
    "parquet": (IN_PARQUET, []),
}
LABELS = ("clicks", "bought", "clicked")


def rows_of(text: str, *days: int) -> Rows:
    """The log in the form of a mapping; the last page of a day has one candidate only."""
    rows = [
        row
        | {
            "bought": "now" if row["clicks"] else "",
            "place": "home" if row["item"] == "b" else "search",
            "price": "" if row["item"] == "b" else row["price"],
        }
        for day in days
        for row in impressions(day)
        if row["item"] == "a" or not row["page"].endswith("3")
    ]
    if 'rows = "impression"' in text:
        return rows
    names = dict.fromkeys(row["page"] for row in rows)
    pages = [[row for row in rows if row["page"] == name] for name in names]
    return [
        {name: page[0][name] for name in ("page", "user", "time")}
        | {f"{name}s": "|".join(str(row[name] or -1) for row in page) for name in ("item", "price")}
        | {"clicks": "|".join(str(row["clicks"]) for row in page)}
        | {"clicked": "|".join(row["item"] for row in page if row["clicks"])}
        for page in pages
    ]


def unlabelled(text: str = WITH_USERS, *, without: str = "") -> Rows:
    """The new rows."""
    left_out = {"clicks", "bought", "clicked", without}
    return [
        {name: value for name, value in row.items() if name not in left_out}
        for row in rows_of(text, NUM_DAYS - 1)
    ]


def write_rows(folder: Path, rows: Rows) -> Path:
    """Rows of the log, and the tables of users and items."""
    write_csv(folder / "log.csv", rows)
    pq.write_table(pyarrow.csv.read_csv(folder / "log.csv"), folder / "log.parquet")
    items = [{"id": item, "category": category(item)} for item in ("a", "b", "new0")]
    write_csv(folder / "items.csv", items)
    ann = {"id": "ann", "age": "30", "likes": "hats|shoes"}
    write_csv(folder / "users.csv", [ann, {"id": "zoe", "age": "", "likes": ""}])
    return folder


def write_whole(folder: Path, text: str) -> Path:
    """The log of all days with what only labels and behaviours need."""
    write_csv(folder / "views.csv", [row for day in range(NUM_DAYS) for row in views(day)])
    write_csv(folder / "tags.csv", [{"id": "a", "tag": "red"}])
    return write_rows(folder, rows_of(text, *range(NUM_DAYS)))


def staged(mapping: MappingConfig, log: Path, folder: Path) -> pa.Table:
    """The staging files of a log."""
    folder.mkdir()

    def read(connection):
        read_log(connection, mapping, log)
        return spec_of(mapping, test_from=0)

    log_tables.stage_log(log, folder, read, EngineLimits())
    return pq.read_table(folder / "requests")


@pytest.mark.parametrize("form", FORMS)
def test_requests_of_new_rows_are_those_of_the_preparation_without_labels(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_tables, "_REQUESTS_PER_FILE", 3)
    text, settings = FORMS[form]
    mapping = mapping_of(tmp_path, text, *settings)
    log = write_whole(tmp_path / "log", text)
    prepare_generic(mapping, log, tmp_path / "data")
    new, output = tmp_path / "new", tmp_path / "made" / "new.parquet"
    write_rows(new, unlabelled(text))
    made = write_new_requests(mapping, new, tmp_path / "data", output)
    found = pq.read_table(output)

    whole = staged(mapping, log, tmp_path / "staging").drop_columns(["label"])
    is_new = whole["timestamp"].to_numpy() >= 1000 * (START + 86_400)
    assert found.equals(whole.filter(pa.array(is_new)))
    assert found.num_rows == 4
    assert min(map(len, found["item_id"].to_pylist())) == 1
    times = found["timestamp"].to_pylist()
    assert times == sorted(times)
    candidates = sum(map(len, found["item_id"].to_pylist()))
    assert made == NewRequests(4, candidates, times[0], times[-1])
    assert files(tmp_path / "made") == ["new.parquet"]

    # Labels that are there have no effect.
    output.unlink()
    write_new_requests(mapping, log, tmp_path / "data", output)
    assert pq.read_table(output).equals(whole)


def fill(folder: Path) -> None:
    """A dataset, and new rows."""
    mapping = mapping_of(folder, WITH_USERS)
    prepare_generic(mapping, write_whole(folder / "log", WITH_USERS), folder / "data")
    write_rows(folder / "new", unlabelled())


@pytest.fixture
def made(make_once: MakeOnce, tmp_path: Path) -> Path:
    """A copy, to spoil."""
    return Path(shutil.copytree(make_once("new requests", fill), tmp_path / "made"))


def command(folder: Path, *settings: str) -> list[str]:
    mapping = ["--mapping", str(folder / "mapping.toml"), *settings]
    paths = ["--input", str(folder / "new"), "--output", str(folder / "new.parquet")]
    return ["requests", str(folder / "data"), *paths, *mapping]


def test_the_command_says_what_it_made_and_how_it_is_scored(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(command(made))
    output = made / "new.parquet"
    assert capsys.readouterr().out == (
        f"{output}: 10 candidates of 4 requests, 2025-06-02 03:00:00 UTC to 2025-06-02 15:00:00 "
        f"UTC\nscore them: cdp_torchrec predict ARTIFACT {output} output=scores.parquet "
        f"history_store={made / 'data'}\n"
    )


def test_what_is_left_out_is_counted_and_what_is_odd_is_said(
    made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = unlabelled()
    stray = rows[0] | {"user": ""}
    late = rows[-1] | {"page": "late", "time": START + 3 * 86_400}
    write_csv(made / "new" / "log.csv", [stray, *rows, rows[0], late])
    rules = ["log.only={column='user', filled=true}", "window.end='2025-06-03'"]
    with caplog.at_level(logging.WARNING):
        main(command(made, *rules, "split.requests_from='2027-01-01'"))
    assert "1 of 13 rows left out by the rule on 'user' (log.only)" in caplog.text
    assert "1 of 12 rows left out: 'time' is outside of the window" in caplog.text
    assert "1 of 11 candidates stand in their request already" in caplog.text
    assert "2 of 4 requests are of a user that is not there" in caplog.text
    assert pq.read_table(made / "new.parquet").num_rows == 4


def test_a_stranger_alone_is_scored_without_attributes(
    made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = unlabelled()[0] | {"user": "stranger", "item": "unheard of"}
    write_csv(made / "new" / "log.csv", [row])
    main(command(made))
    (found,) = pq.read_table(made / "new.parquet").to_pylist()
    assert (found["user_id"], found["age"], found["likes"]) == ("stranger", None, None)
    assert (found["item_id"], found["category_id"]) == (["unheard of"], [None])
    assert "users.csv: column 'id' has no user of the log: compare 'ann' with" in caplog.text


def no_file(folder: Path) -> list[str]:
    (folder / "new" / "items.csv").unlink()
    return []


def no_column(folder: Path) -> list[str]:
    write_csv(folder / "new" / "log.csv", unlabelled(without="price"))
    return []


def no_rows(folder: Path) -> list[str]:
    path = folder / "new" / "log.csv"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    return []


def no_folder(folder: Path) -> list[str]:
    shutil.rmtree(folder / "new")
    return []


def another_time(folder: Path) -> list[str]:
    write_csv(folder / "new" / "log.csv", [row | {"time": "noon"} for row in unlabelled()])
    return []


def one_name_of_two(folder: Path) -> list[str]:
    row = unlabelled()[0]
    names = (("a/b", "c"), ("a", "b/c"))
    write_csv(folder / "new" / "log.csv", [row | {"page": p, "place": q} for p, q in names])
    return ["log.request=['page', 'place']"]


def output_there(folder: Path) -> list[str]:
    (folder / "new.parquet").write_text("mine")
    return []


def mapping_of_actions(folder: Path) -> list[str]:
    (folder / "mapping.toml").write_text(ACTIONS)
    return []


BAD = {
    "a folder that is not there": (no_folder, "made/new: no such directory"),
    "a file that is not there": (no_file, "new/items.csv: no such file"),
    "a column that is not there": (no_column, "log.csv: column 'price' is missing, found"),
    "no row": (no_rows, "new/log.csv: the file has no rows"),
    "no row that counts": (
        lambda folder: [ONLY.replace("search", "shelf")],
        "log.csv: all 10 rows left out by the rule on 'place' (log.only)",
    ),
    "a rule on the label, which is not there": (
        lambda folder: ["log.only={column='clicks', filled=true}"],
        "log.csv: column 'clicks' is missing, found",
    ),
    "no row of the window": (
        lambda folder: ["window.end='2025-06-02'"],
        "log.csv: no row lies in the window ([window]): 'time' runs from 2025-06-02",
    ),
    "no time": (another_time, "log.csv: line 2: 'time' is no number of seconds: noon"),
    "one name of two requests": (
        one_name_of_two,
        "log.csv: two requests would be named a/b/c, since values of ['page', 'place'] hold a '/'",
    ),
    "another feature": (
        lambda folder: ["features.hour.role=scene"],
        "made/data: the mapping is not the one that it was made by: feature 'hour' is id of each "
        "request, role context, ids of hour in the dataset, and id of each request, role scene",
    ),
    "a log of actions": (mapping_of_actions, "new: the mapping draws negatives ([sampling])"),
    "an output that is there": (
        output_there,
        "new.parquet exists; remove it or choose another",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_that_cannot_be_scored_are_one_message_and_leave_nothing(
    made: Path, case: str
) -> None:
    spoil, message = BAD[case]
    settings = spoil(made)
    before = files(made)
    with pytest.raises(DatasetError) as caught:
        main(command(made, *settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(made) == before


def test_a_mapping_that_is_not_there_and_a_folder_that_is_no_dataset_are_named(made: Path) -> None:
    (made / "mapping.toml").unlink()
    with pytest.raises(ConfigError, match=r"mapping\.toml: no such file"):
        main(command(made))
    shutil.rmtree(made / "data")
    with pytest.raises(DatasetError, match="data is no dataset directory"):
        main(command(made))


def test_candidates_for_a_log_of_actions_are_read_by_a_mapping_of_their_own(
    make_once: MakeOnce, tmp_path: Path
) -> None:
    rows = [
        {"user": f"u{n % 7}", "item": f"i{n % 11}", "time": START + 60 * n, "action": "view"}
        | {"category": f"c{n % 3}"}
        for n in range(200)
    ]
    write_csv(tmp_path / "log" / "log.csv", rows)
    prepare_generic(mapping_of(tmp_path, ACTIONS), tmp_path / "log", tmp_path / "data")
    lines = [line for line in ACTIONS.splitlines() if not line.startswith("sampling")]
    text = "\n".join(lines).replace('rows = "action"', 'rows = "impression"')
    own = mapping_of(tmp_path / "own", text)
    new = [{k: v for k, v in row.items() if k != "action"} for row in rows[-20:]]
    write_csv(tmp_path / "new" / "log.csv", new)
    made = write_new_requests(own, tmp_path / "new", tmp_path / "data", tmp_path / "new.parquet")
    assert (made.num_requests, made.num_candidates) == (20, 20)
