"""Everything that can be wrong with a log, or with its mapping, is one message; nothing is left."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.prepare.mapped.generic import prepare_generic
from cdp_torchrec.data.schema import DatasetError
from tests.data.mapped_logs import IMPRESSIONS, START, mapping_of, two_days, write_csv
from tests.data.test_generic import BEHAVIOURS, LISTS

NAMED = "tables.log.columns=['page','user','time','item','category','clicks']"

BAD_LOGS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "missing column": (
        {},
        ["log.user=uid"],
        "log.csv: column 'uid' is missing, found ['page', 'user', 'time', 'item', 'category',",
    ),
    "delimiter": (
        {},
        ["tables.log.delimiter=;"],
        "log.csv: column 'user' is missing, found ['page,user,time,item,category,clicks']; with "
        "the delimiter ',' it would have 6 cells",
    ),
    "encoding": (
        {"item": "caf\xe9"},
        ["tables.log.encoding=ascii"],
        "log.csv: malformed line: 'ascii' codec can't decode byte 0xc3",
    ),
    "header": ({}, [NAMED], "log.csv: line 1 is a header, but none is expected where columns"),
    "other header": (
        {},
        [
            "tables.log.columns=['p','u','t','i','k','c']",
            "log.user=u",
            "log.item=i",
            "log.request=['p']",
            "log.time.column=t",
            "log.label.column=c",
            "features.category_id.column=k",
        ],
        "log.csv: line 1: 't' is no number of seconds: time; is it a header? Then leave out",
    ),
    "milliseconds": (
        {"time": 1000 * START},
        [],
        "log.csv: line 2: 'time' is no time from 1990 to 2099 in seconds: 1748736000000; in "
        "milliseconds (unit = 'ms') it is 2025-06-01 00:00:00 UTC",
    ),
    "seconds": (
        {},
        ["log.time.unit=ms"],
        "log.csv: line 2: 'time' is no time from 1990 to 2099 in milliseconds: 1748739600; in "
        "seconds (unit = 's') it is 2025-06-01 01:00:00 UTC",
    ),
    "no time": ({"time": "noon"}, [], "log.csv: line 2: 'time' is no number of seconds: noon"),
    "empty time": ({"time": ""}, [], "log.csv: line 2: 'time' is empty"),
    "text": (
        {},
        ["log.time={column='time', unit='text', format='%Y-%m-%d'}"],
        "log.csv: line 2: 'time' is no time of the form %Y-%m-%d: 1748739600",
    ),
    "no row counts": (
        {"user": ""},
        ["log.only={column='user', filled=true}"],
        "log.csv: all 6 rows left out by the rule on 'user' (log.only)",
    ),
    "no row says whether it counts": (
        {"page": ""},
        ["log.only={column='page', one_of=['p1']}"],
        "log.csv: line 2: 'page' is empty",
    ),
    "iso": (
        {"time": "2025-06-01T08:30:00 +02:00"},
        ["log.time={column='time', unit='text', format='iso8601'}"],
        "log.csv: line 2: 'time' is no time of the form iso8601: 2025-06-01T08:30:00 +02:00",
    ),
    "format": (
        {},
        ["log.time={column='time', unit='text', format='%Q'}"],
        "'time' has the format '%Q', which cannot be read: ",
    ),
    "timestamp": (
        {},
        ["log.time.unit=timestamp"],
        "log.csv: column 'time' does not have parquet's type for moments, but unit = 'timestamp'",
    ),
    "window": (
        {},
        ["window.end='2020-01-01'"],
        "log.csv: no row lies in the window ([window]): 'time' runs from 2025-06-01 01:00:00 UTC",
    ),
    "no requests": (
        {},
        ["split.requests_from='2026-01-01'"],
        "log.csv: no request at or after requests_from (2026-01-01)",
    ),
    "user": (
        {"user": ""},
        [],
        "log.csv: line 2: 'user' is empty; log.only = {column = 'user', filled = true} leaves such "
        "rows out",
    ),
    "item": ({"item": ""}, [], "log.csv: line 2: 'item' is empty"),
    "label": ({"clicks": "yes"}, [], "log.csv: line 2: 'clicks' is no number: yes"),
    "label of a boolean": (
        {"clicks": "True"},
        [],
        "log.csv: line 2: 'clicks' is a text, which one_of names and above does not compare: True",
    ),
    "label NaN": ({"clicks": "nan"}, [], "log.csv: line 2: 'clicks' is no number: nan"),
    "label infinite": (
        {"clicks": "inf"},
        [],
        "log.csv: line 2: 'clicks' is a number beyond 3.4e+3",
    ),
    "label 1_0": ({"clicks": "1_0"}, [], "log.csv: line 2: 'clicks' is no number: 1_0"),
    "beyond float32": (
        {"user": "1e39"},
        ["features.u={role='user', level='request', kind='number', column='user'}"],
        "log.csv: line 2: 'user' is a number beyond 3.4e+38: 1e39",
    ),
    "no label": ({"clicks": ""}, [], "log.csv: line 2: 'clicks' is empty"),
    "number": (
        {},
        [
            "features.category_id.kind=number",
            "features.category_id.column=item",
            "features.c={role='item', level='candidate', kind='id', column='item'}",
            "category=c",
        ],
        "log.csv: line 2: 'item' is no number: a",
    ),
    "file": ({}, ["tables.log.files=['x.csv']"], "x.csv: no such file (nor with .gz or .xz); ther"),
    "pattern": ({}, ["tables.log.files=['x*']"], "x*: no such file; there are ['log.csv', 'ma"),
    "empty test split": (
        {},
        ["split.test_from='2026-01-01'"],
        "the test split is empty: no request at or after 2026-01-01 00:00:00 UTC",
    ),
}


def refused(folder: Path, text: str, *settings: str) -> str:
    """The one line that says why the log in a folder is refused."""
    before = {path for path in folder.rglob("*")}
    mapping = mapping_of(folder / "mapping", text, *settings)
    with pytest.raises(DatasetError) as caught:
        prepare_generic(mapping, folder, folder / "data")
    left = {path for path in folder.rglob("*")} - before
    assert {path.name for path in left} <= {"mapping", "mapping.toml"}
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).removeprefix(f"{folder}/")


@pytest.mark.parametrize("case", BAD_LOGS)
def test_a_bad_log_is_named_with_its_line(tmp_path: Path, case: str) -> None:
    values, settings, message = BAD_LOGS[case]
    write_csv(tmp_path / "log.csv", two_days(**values))
    assert refused(tmp_path, IMPRESSIONS, *settings).startswith(message)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere: no such directory$"):
        prepare_generic(mapping_of(tmp_path, IMPRESSIONS), tmp_path / "nowhere", tmp_path / "data")


def test_rows_of_a_request_that_contradict_each_other_are_an_error(tmp_path: Path) -> None:
    rows = two_days(client="app")
    rows[1]["client"] = "web"
    write_csv(tmp_path / "log.csv", rows)
    client = "features.client={role='scene', level='request', kind='id'}"
    said = refused(tmp_path, IMPRESSIONS, client)
    assert said.startswith("log.csv: request p1 has more than one value of 'client': is it of le")
    rows[1]["client"] = ""
    write_csv(tmp_path / "log.csv", rows)
    assert refused(tmp_path, IMPRESSIONS, client) == said


BAD_ATTRIBUTES = {
    "twice": ("a,1\na,2", "items.csv: line 3: 'itemId' a stands in line 2 already"),
    "nobody": ("\xe4,1", "items.csv: column 'itemId' has no item of the log: compare '\xe4' w"),
    "empty": (",1", "items.csv: line 2: 'itemId' is empty"),
    "price": ("a,cheap", "items.csv: line 2: 'price' is no number: cheap"),
}


@pytest.mark.parametrize("case", BAD_ATTRIBUTES)
def test_a_bad_table_of_attributes_is_named_with_its_line(tmp_path: Path, case: str) -> None:
    lines, message = BAD_ATTRIBUTES[case]
    write_csv(tmp_path / "log.csv", two_days())
    (tmp_path / "items.csv").write_text(f"itemId,price\n{lines}\n")
    items = "tables.items={files=['items.csv'], by='item', key='itemId'}"
    price = "features.price={role='item', level='candidate', kind='number', table='items'}"
    assert refused(tmp_path, IMPRESSIONS, items, price).startswith(message)


LIST = {"page": "p1", "user": "ann", "time": START, "items": "a|b", "categories": "x|y"}
BAD_LISTS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "unequal": (
        {"categories": "x"},
        [],
        "log.csv: line 2: the lists 'items' and 'categories' are of unequal length: 2 and 1",
    ),
    "missing": (
        {"categories": ""},
        [],
        "log.csv: line 2: the lists 'items' and 'categories' are of unequal length: 2 and 0",
    ),
    "no items": ({"items": ""}, [], "log.csv: line 2: the list 'items' is empty"),
    "empty item": ({"items": "a|"}, [], "log.csv: line 2: the list 'items' holds an empty item"),
    "number": (
        {},
        ["features.price={role='item', level='candidate', kind='number', column='categories'}"],
        "log.csv: line 2: 'categories' is no number in the list: x",
    ),
    "number beyond float32": (
        {"categories": "1|inf"},
        ["features.price={role='item', level='candidate', kind='number', column='categories'}"],
        "log.csv: line 2: 'categories' is a number beyond 3.4e+38 in the list: inf",
    ),
    "label NaN": (
        {"categories": "1|nan"},
        ["log.label={column='categories', above=0}"],
        "log.csv: line 2: 'categories' is no number in the list: nan",
    ),
    "label": (
        {},
        ["log.label={column='categories', above=0}"],
        "log.csv: line 2: 'categories' is no number in the list: x",
    ),
    "same id": ({}, [], "log.csv: line 3: request p1 stands in line 2 already"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_bad_lists_are_named_with_their_line(tmp_path: Path, case: str) -> None:
    values, settings, message = BAD_LISTS[case]
    row = LIST | {"clicked": "b"} | values
    write_csv(tmp_path / "log.csv", [row, row])
    text = LISTS.replace('clicked = "clicked"\n', "") if case.startswith("label") else LISTS
    assert refused(tmp_path, text, *settings).startswith(message)


@pytest.mark.parametrize(
    ("item", "message"),
    [(["what"], "'what' is empty"), (["what", "kind"], "'what' and 'kind' are empty")],
)
def test_a_behaviour_without_any_part_of_its_item_is_an_error(
    tmp_path: Path, item: list[str], message: str
) -> None:
    write_csv(tmp_path / "log.csv", two_days())
    view = {"who": "ann", "how": "look", "when": "01.06.2025 03:30", "seconds": 5}
    whole = view | {"what": "a", "kind": "shoes"}
    write_csv(tmp_path / "views.csv", [whole, whole | {"what": "", "kind": ""}])
    said = refused(tmp_path, BEHAVIOURS, f"behaviours.view.item={item}")
    assert said.startswith(f"views.csv: line 3: {message}")


def test_lists_without_a_separator_are_an_error(tmp_path: Path) -> None:
    write_csv(tmp_path / "log.csv", [LIST | {"clicked": "b"}])
    said = refused(tmp_path, LISTS.replace('separator = "|"\n', ""))
    assert said.startswith("log.csv: column 'items' has no lists; a separator would tell how")


def test_a_parquet_log_of_other_types_is_an_error(tmp_path: Path) -> None:
    columns = {name: [row[name] for row in two_days()] for name in two_days()[0]}
    settings = ["tables.log={files=['log.parquet'], format='parquet'}"]
    pq.write_table(pa.table(columns | {"item": [0.5] * 6}), tmp_path / "log.parquet")
    said = refused(tmp_path, IMPRESSIONS, *settings)
    assert "column 'item' is of type double, expected string, integer or boolean, or" in said
    pq.write_table(pa.table(columns | {"item": [["a"]] * 6}), tmp_path / "log.parquet")
    said = refused(tmp_path, IMPRESSIONS, *settings)
    assert "column 'item' has lists, but one value a row is needed" in said
    (tmp_path / "log.parquet").write_bytes(gzip.compress(b"no parquet"))
    assert "no parquet file, it begins with" in refused(tmp_path, IMPRESSIONS, *settings)


def test_nan_in_a_parquet_file_is_missing(tmp_path: Path) -> None:
    columns = {name: [row[name] for row in two_days()] for name in two_days()[0]}
    clicks = [0.0, float("nan"), 1.0, 0.0, 1.0, 0.0]
    pq.write_table(pa.table(columns | {"clicks": clicks}), tmp_path / "log.parquet")
    said = refused(tmp_path, IMPRESSIONS, "tables.log={files=['log.parquet'], format='parquet'}")
    assert said == "log.parquet: row 1: 'clicks' is empty"


BAD_MAPPINGS: dict[str, tuple[list[str], str]] = {
    "unknown key": (["log.users=x"], "log.users: unknown key (did you mean 'user'?)"),
    "table": (["log.table=x"], "log.table = 'x': must be one of the tables ['log']"),
    "stars": (
        ["tables.log.files=['day**.csv']"],
        "tables.log.files.0 = 'day**.csv': ** stands for folders, as in '**/x.csv'; within a na",
    ),
    "unused": (["tables.more.files=['x']"], 'tables.more = {files = ["x"]}: is not used'),
    "two labels": (["log.clicked=x"], "exactly one of label and clicked must be set"),
    "separator": (["log.separator='|'"], "has no effect on rows = 'impression'"),
    "rule": (["log.label.one_of=['1']"], "exactly one of above, one_of and filled must be set"),
    "sampling": (["sampling.seed=1"], "rows = 'action' needs it, other logs have none"),
    "no sampling": (["log.rows=action", "log.request=[]"], "has no effect on rows = 'action'"),
    "category": (["category=brand"], "must be a feature of level 'candidate' and kind 'id'"),
    "derived category": (
        [
            "category=spot",
            "features.spot={role='context',level='candidate',kind='id',derive='position'}",
        ],
        "category = 'spot': 'spot' is derived: behaviours have no place in a list",
    ),
    "name": (["features.label={role='item', level='request', kind='id'}"], "that is not reserved"),
    "bag": (["features.category_id.kind=ids"], "must be 'id' or 'number' on level 'candidate'"),
    "derive": (["features.category_id.derive=hour"], "must be 'request' where derive = 'hour'"),
    "level": (["features.category_id.table=log"], "must be one of the tables with by = 'item'"),
    "moment": (["split.test_from=soon"], "must be a date or time such as 2017-12-03"),
    "empty column": (["features.price.column=''"], "must be a string (at least 1 character)"),
    "splits": (["split.test_share=0.5"], "exactly one of test_from and test_share must be set"),
    "format": (["log.time.unit=text"], "unit = 'text' needs it, other units have none"),
    "offset": (["log.time.utc_offset=+80:00"], "'+80:00': must be from -14:00 to +14:00"),
    "minutes": (
        ["log.time.utc_offset=+05:75"],
        "log.time.utc_offset = '+05:75': must be a string matching",
    ),
    "encoding": (["tables.log.encoding=klingon"], "must be an encoding that Python knows"),
    "no text": (["tables.log.encoding=base64"], "must be an encoding that Python knows"),
    "quote": (["tables.log.delimiter='::'"], "must be 'none' where delimiter has several"),
    "parquet": (
        ["tables.log={files=['x'], format='parquet', delimiter=';'}"],
        "has no effect on format = 'parquet'",
    ),
    "half a source": (["behaviours.click.user=x"], "needs a table: positives of the log have all"),
    "half a table": (["behaviours.click.table=log"], "must be set where a table is"),
    "key": (["tables.log.by=user"], "by and key go together"),
}


@pytest.mark.parametrize("case", BAD_MAPPINGS)
def test_a_bad_mapping_names_the_key(tmp_path: Path, case: str) -> None:
    settings, message = BAD_MAPPINGS[case]
    with pytest.raises(ConfigError) as caught:
        mapping_of(tmp_path, IMPRESSIONS, *settings)
    assert message in str(caught.value)
