"""A day of a mapped log is appended by the mapping of its dataset."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands.prepare_data import main
from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.days import load_grown_schema
from cdp_torchrec.data.prepare.append import append_day
from cdp_torchrec.data.prepare.arrivals.inbox import SUCCESS, follow
from cdp_torchrec.data.prepare.mapped.day import append_mapped_day
from cdp_torchrec.data.prepare.mapped.generic import prepare_generic
from cdp_torchrec.data.schema import DatasetError
from tests.conftest import MakeOnce
from tests.data.appended_log import files
from tests.data.mapped_logs import START, mapping_of, write_csv
from tests.data.staged_log import read_rows
from tests.data.test_append import raw_rows
from tests.data.test_drawn_negatives import ACTIONS
from tests.data.trivago_events import Rows

MAPPING = """
name = "shop"
source = "made by hand"
category = "category_id"

[tables.log]
files = ["log.csv"]

[tables.items]
files = ["items.csv"]
by = "item"
key = "id"

[tables.views]
files = ["views.csv"]

[log]
table = "log"
rows = "impression"
user = "user"
item = "item"
request = ["page"]
time = {column = "time", unit = "s"}
label = {column = "clicks", above = 0}

[features.category_id]
role = "item"
level = "candidate"
kind = "id"
table = "items"
column = "category"

[features.price]
role = "item"
level = "candidate"
kind = "number"

[features.hour]
role = "context"
level = "request"
kind = "id"
derive = "hour"

[features.position]
role = "context"
level = "candidate"
kind = "id"
derive = "position"

[behaviours.click]

[behaviours.view]
table = "views"
user = "user"
item = ["item"]
time = {column = "time", unit = "s"}

[split]
test_from = "2025-06-02T12:00:00"
"""
NUM_DAYS = 3
HOURS = (3, 4, 9, 15)


def impressions(day: int) -> Rows:
    """Four pages of three items for one of two users; each day, one new item."""
    return [
        {
            "page": f"p{day}-{number}",
            "user": ("ann", "bob")[number % 2],
            "time": START + 86_400 * day + 3_600 * hour,
            "item": item,
            "price": (day + 1) * (number + 2) + place,
            "clicks": int(place == (day + number) % 3),
        }
        for number, hour in enumerate(HOURS)
        for place, item in enumerate(("a", "b", f"new{day}"))
    ]


def views(day: int) -> Rows:
    """One look at an item of each user, between the pages of the day."""
    moment = START + 86_400 * day + 3_600 * 6
    return [{"user": u, "item": item, "time": moment} for u, item in (("ann", "b"), ("bob", "a"))]


def category(item: str) -> str:
    return "shoes" if item in "ab" else "hats"


def write_log(folder: Path, days: range) -> Path:
    """The files of some days, with the items that are known by then."""
    items = ["a", "b", *(f"new{day}" for day in days)]
    write_csv(folder / "log.csv", [row for day in days for row in impressions(day)])
    write_csv(folder / "views.csv", [row for day in days for row in views(day)])
    write_csv(folder / "items.csv", [{"id": item, "category": category(item)} for item in items])
    return folder


def write_staging(folder: Path, day: int) -> Path:
    """The same day as somebody would write it without a mapping."""
    requests: dict[str, dict[str, Any]] = {}
    behaviours = [
        {"user_id": r["user"], "item": r["item"], "action": action, "timestamp": 1000 * r["time"]}
        for action, rows in (
            ("click", [r for r in impressions(day) if r["clicks"]]),
            ("view", views(day)),
        )
        for r in rows
    ]
    for row in impressions(day):
        hour = str(row["time"] % 86_400 // 3_600)
        moment = {"timestamp": 1000 * row["time"], "hour": hour}
        page = {"request_id": row["page"], "user_id": row["user"]} | moment
        request = requests.setdefault(row["page"], page)
        of_candidate = {
            "item_id": row["item"],
            "category_id": category(row["item"]),
            "price": float(row["price"]),
            "position": str(len(request.get("item_id", [])) + 1),
            "label": row["clicks"],
        }
        for name, value in of_candidate.items():
            request.setdefault(name, []).append(value)
    staged = {
        "requests": [*requests.values()],
        "behaviours": [row | {"category": category(row["item"])} for row in behaviours],
    }
    for name, rows in staged.items():
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / name / "part-0.parquet")
    return folder


def fill(folder: Path) -> None:
    """The log of all days, and a dataset of all but the last one."""
    prepare_generic(
        mapping_of(folder, MAPPING), write_log(folder / "first", range(2)), folder / "base"
    )
    write_log(folder / "day", range(2, NUM_DAYS))


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> Path:
    """Do not write into it."""
    return make_once("appended by a mapping", fill)


def test_a_day_by_its_mapping_is_the_day_of_the_whole_log_and_that_of_staging_files(
    made: Path, tmp_path: Path
) -> None:
    for name in ("mapped", "staged"):
        shutil.copytree(made / "base", tmp_path / name)
    by_mapping = ["--mapping", str(made / "mapping.toml"), "source=the third day"]
    main(["append", str(tmp_path / "mapped"), "--input", str(made / "day"), *by_mapping])
    append_day(tmp_path / "staged", write_staging(tmp_path / "day", 2))
    assert files(tmp_path / "mapped") == files(tmp_path / "staged")
    day = Path("days", "2025-06-03")
    # The record says how large the files of the mapping were, and so does not equal the other.
    records = {"day.toml", "manifest.json"}
    for path in (p for p in (tmp_path / "mapped" / day).rglob("*") if p.is_file()):
        other = tmp_path / "staged" / path.relative_to(tmp_path / "mapped")
        assert path.name in records or path.read_bytes() == other.read_bytes(), path
    days = [load_grown_schema(tmp_path / name).days[-1] for name in ("mapped", "staged")]
    size = sum(path.stat().st_size for path in (made / "day").iterdir())
    assert days[0] == days[1].model_copy(update={"log_bytes": size})

    whole = tmp_path / "whole"
    prepare_generic(
        mapping_of(tmp_path, MAPPING), write_log(tmp_path / "log", range(NUM_DAYS)), whole
    )
    grown = read_rows(tmp_path / "mapped", "train", "test", f"{day}/requests")
    assert raw_rows(tmp_path / "mapped", grown) == raw_rows(whole, read_rows(whole))


def test_rows_with_lists_that_have_no_name_are_other_requests_on_another_day(
    tmp_path: Path,
) -> None:
    text = MAPPING.replace('"impression"', '"request"\nseparator = "|"')
    text = text.replace('request = ["page"]\n', "").replace('"price"', '"prices"')
    days = [range(2), range(2, NUM_DAYS)]
    for number, days_of in enumerate(days):
        folder = write_log(tmp_path / str(number), days_of)
        rows = [row for day in days_of for row in impressions(day)]
        pages = [rows[start : start + 3] for start in range(0, len(rows), 3)]
        lists = [
            page[0] | {n: "|".join(str(r[n]) for r in page) for n in ("item", "price", "clicks")}
            for page in pages
        ]
        write_csv(folder / "log.csv", lists)
    mapping = mapping_of(tmp_path, text)
    prepare_generic(mapping, tmp_path / "0", tmp_path / "data")
    day = append_mapped_day(mapping, tmp_path / "1", tmp_path / "data")
    assert day.requests.requests == len(HOURS)


def test_an_inbox_of_a_mapped_log_is_followed_by_its_mapping(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("inbox", "by hand"):
        shutil.copytree(made / "base", tmp_path / name / "data")
    mapping, arriving = made / "mapping.toml", tmp_path / "arriving"
    entry = shutil.copytree(made / "day", arriving / "2025-06-03")
    line = ["follow", str(tmp_path / "inbox" / "data"), "--inbox", str(arriving)]
    line += ["--idle-timeout", "0", "--mapping", str(mapping)]
    main(line)
    assert load_grown_schema(tmp_path / "inbox" / "data").days == ()  # it has no mark yet
    (entry / SUCCESS).touch()
    main(line)
    assert "appended 2025-06-03: 4 requests, 12 impressions, 4 clicks, " in capsys.readouterr().out
    append_mapped_day(mapping_of(made, MAPPING), made / "day", tmp_path / "by hand" / "data")
    for path in (p for p in (tmp_path / "by hand").rglob("*") if p.is_file()):
        assert (tmp_path / "inbox" / path.relative_to(tmp_path / "by hand")).read_bytes() == (
            path.read_bytes()
        ), path
    main(line)  # what was appended is not appended again
    with (entry / "views.csv").open("a") as file:
        file.write(" ")
    size = sum(path.stat().st_size for path in entry.iterdir())
    with pytest.raises(
        DatasetError, match=rf"2025-06-03: has {size:,} bytes now, {size - 1:,} of them were"
    ):
        main(line)


def without_prices(folder: Path) -> list[str]:
    rows = [{k: v for k, v in row.items() if k != "price"} for row in impressions(2)]
    write_csv(folder / "log.csv", rows)
    return []


def without_items(folder: Path) -> list[str]:
    (folder / "items.csv").unlink()
    return []


def of_the_second_day(folder: Path) -> list[str]:
    write_log(folder, range(1, 2))
    return []


BAD = {
    "another column": (without_prices, "day/log.csv: column 'price' is missing, found"),
    "a file that is not there": (without_items, "day/items.csv: no such file"),
    "an earlier day": (
        of_the_second_day,
        "day: the first request is of 2025-06-02 03:00:00 UTC, not later than",
    ),
    "another kind": (
        lambda folder: ["features.hour.role=scene"],
        "feature 'hour' is id of each request, role context, ids of hour in the dataset, and id "
        "of each request, role scene, ids of hour in the mapping",
    ),
    "another feature": (
        lambda folder: ["features.day={role='context', level='request', kind='id', derive='hour'}"],
        "feature 'day' is missing in the dataset, and id of each request",
    ),
    "the window of the log": (
        lambda folder: ["window.end='2025-06-03'"],
        "day/log.csv: no row lies in the window ([window]): 'time' runs from 2025-06-03",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_day_that_does_not_fit_is_refused_and_leaves_nothing(
    made: Path, tmp_path: Path, case: str
) -> None:
    spoil, message = BAD[case]
    for name in ("base", "day"):
        shutil.copytree(made / name, tmp_path / name)
    before = files(tmp_path / "base")
    mapping = mapping_of(tmp_path, MAPPING, *spoil(tmp_path / "day"))
    with pytest.raises(DatasetError) as caught:
        append_mapped_day(mapping, tmp_path / "day", tmp_path / "base")
    assert message in str(caught.value)
    assert {*files(tmp_path / "base")} - {*before} <= {"days"}


def test_a_mapping_that_is_not_there_is_named(made: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        folders = [str(made / "base"), "--input", str(made / "day")]
        main(["append", *folders, "--mapping", "nowhere.toml"])


def test_a_day_of_a_log_of_actions_is_refused_because_negatives_need_the_log_before(
    made: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=r"draws negatives .* prepare the whole log"):
        append_mapped_day(mapping_of(tmp_path, ACTIONS), made / "day", made / "base")


def test_an_inbox_is_not_followed_by_a_mapping_that_cannot_add_days(
    made: Path, tmp_path: Path
) -> None:
    (tmp_path / "inbox").mkdir()
    for text, message in (
        (ACTIONS, "draws negatives"),
        (
            MAPPING.replace("[features.hour]", "[features.hour_of_day]"),
            "not the one that it was made by",
        ),
    ):
        days = follow(made / "base", tmp_path / "inbox", mapping=mapping_of(tmp_path, text))
        with pytest.raises(DatasetError, match=message):
            next(days)
