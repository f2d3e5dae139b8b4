"""Which rows of a mapped log are read: by one rule, or by several that must all hold."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.schema import DatasetError
from tests.data.mapped_logs import (
    IMPRESSIONS,
    START,
    impression,
    mapping_of,
    prepare,
    two_days,
    write_csv,
)
from tests.data.test_generic import LISTS

SEEN = """
[behaviours.seen]
table = "log"
user = "user"
item = ["item"]
time = {column = "time", unit = "s"}
"""


@pytest.mark.parametrize("empty", ["user", "item"])
def test_rows_that_the_log_shall_not_read_are_counted_and_need_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, empty: str
) -> None:
    stray = impression(1, "c", time="", clicks="") | {empty: ""}
    write_csv(tmp_path / "whole" / "log.csv", two_days())
    write_csv(tmp_path / "dirty" / "log.csv", [stray, *two_days(), stray])
    rule = f"log.only={{column='{empty}', filled=true}}"
    assert prepare(tmp_path / "dirty", IMPRESSIONS, rule) == prepare(
        tmp_path / "whole", IMPRESSIONS
    )
    assert f"2 of 8 rows left out by the rule on '{empty}' (log.only)" in caplog.text


@pytest.mark.parametrize("nothing", [[], None])
def test_requests_that_found_nothing_are_left_out_by_their_empty_lists(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, nothing: list[str] | None
) -> None:
    pages = [
        {"page": f"p{n}", "user": "ann", "time": START + 50_000 * n, "items": ["a", "b"]}
        | {"clicked": ["b"], "categories": ["hats", "hats"]}
        for n in range(3)
    ]
    empty = {"page": "p7", "user": "ann", "time": START, "items": nothing, "categories": nothing}
    for name, rows in (("whole", pages), ("dirty", [pages[0], empty, *pages[1:]])):
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / "log.parquet")
    parquet = "tables.log={files=['log.parquet'], format='parquet'}"
    with pytest.raises(
        DatasetError, match=r"row 1: the list 'items' is empty; log\.only = \{colum"
    ):
        prepare(tmp_path / "dirty", LISTS, parquet)
    rule = "log.only={column = 'items', filled = true}"
    found = prepare(tmp_path / "dirty", LISTS, parquet, rule)
    assert found == prepare(tmp_path / "whole", LISTS, parquet)
    assert "1 of 4 rows left out by the rule on 'items' (log.only)" in caplog.text


def test_behaviours_of_the_log_may_be_other_rows_than_its_requests(tmp_path: Path) -> None:
    rows = [row | {"place": "home" if row["item"] == "a" else "search"} for row in two_days()]
    write_csv(tmp_path / "log.csv", rows)
    seen = SEEN + 'only = {column = "place", one_of = ["home"]}\n'
    only = "log.only={column='place', one_of=['search']}"
    found = prepare(tmp_path, IMPRESSIONS + seen, only)
    assert [row["item_id"] for row in found] == [["b"]] * 3
    assert [row["history_length"] for row in found] == [0, 2, 4]


def test_a_rule_by_which_no_behaviour_counts_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_csv(tmp_path / "log.csv", [row | {"place": "home"} for row in two_days()])
    rules = 'only = [{column = "place", filled = true}, {column = "place", one_of = ["hoem"]}]\n'
    prepare(tmp_path, IMPRESSIONS + SEEN + rules)
    assert "log.csv: no row counts by behaviours.seen.only" in caplog.text


def test_rows_must_obey_every_rule_and_each_rule_is_said_with_its_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row | {"score": 1} for row in two_days()]
    write_csv(tmp_path / "whole" / "log.csv", rows)
    # Only what the rule before leaves is asked for a number.
    nobody = impression(1, "c", user="") | {"score": "none"}
    poor = impression(1, "c") | {"score": 0}
    write_csv(tmp_path / "dirty" / "log.csv", [nobody, poor, *rows, nobody, poor, poor])
    by_user, by_score = "{column='user', filled=true}", "{column='score', above=0}"
    found = prepare(tmp_path / "dirty", IMPRESSIONS, f"log.only=[{by_user}, {by_score}]")
    assert found == prepare(tmp_path / "whole", IMPRESSIONS)
    assert "2 of 11 rows left out by the rule on 'user' (log.only.0)" in caplog.text
    assert "3 of 9 rows left out by the rule on 'score' (log.only.1)" in caplog.text


def test_behaviours_must_obey_every_rule(tmp_path: Path) -> None:
    lengths = []
    for rules in (
        [],
        ["{column = 'seconds', above = 3}"],
        ["{column = 'seconds', above = 3}", "{column = 'shop', one_of = ['north']}"],
        ["{column = 'seconds', above = 3}", "{column = 'item', one_of = ['a']}"],
        ["{column = 'seconds', above = 9}", "{column = 'item', one_of = ['a']}"],
    ):
        folder = tmp_path / str(len(lengths))
        write_csv(folder / "log.csv", [row | {"shop": "north", "seconds": 5} for row in two_days()])
        rows = prepare(folder, IMPRESSIONS + SEEN + f"only = [{', '.join(rules)}]")
        lengths.append(rows[-1]["history_length"])
    assert lengths == [6, 6, 6, 4, 2]


BAD = {
    "a rule that leaves nothing": (
        "[{column='user', filled=true}, {column='item', one_of=['z']}]",
        DatasetError,
        "log.csv: all 6 rows left out by the rule on 'item' (log.only.1)",
    ),
    "a column that is not there": (
        "[{column='user', filled=true}, {column='shop', filled=true}]",
        DatasetError,
        "log.csv: column 'shop' is missing, found",
    ),
    "no rule": (
        "[{column='user', filled=true}, {column='item'}]",
        ConfigError,
        "log.only.1.above: exactly one of above, one_of and filled must be set",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_rule_that_cannot_be_meant_is_named(tmp_path: Path, case: str) -> None:
    rules, error, message = BAD[case]
    write_csv(tmp_path / "log.csv", two_days())
    with pytest.raises(error) as caught:
        prepare(tmp_path, IMPRESSIONS, f"log.only={rules}")
    assert message in str(caught.value)


def test_no_rule_at_all_takes_back_that_of_the_file(tmp_path: Path) -> None:
    rule = 'only = {column = "shop", filled = true}'
    text = IMPRESSIONS.replace("[features.", f"{rule}\n\n[features.")
    assert mapping_of(tmp_path, text).log.only
    assert mapping_of(tmp_path, text, "log.only=[]").log.only == ()


@pytest.mark.parametrize("text", ["NULL", "nan", r"\N"])
def test_ids_that_programs_print_for_nothing_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """A mapping may not name them, and a draft has looked at the first rows only."""
    rows = [row | ({"user": text} if row["page"] == "p1" else {}) for row in two_days()]
    rows = [row | ({"category": text} if row["item"] == "a" else {}) for row in rows]
    write_csv(tmp_path / "untold" / "log.csv", rows)
    write_csv(tmp_path / "told" / "log.csv", rows)
    prepare(tmp_path / "untold", IMPRESSIONS)
    said = f"log.csv: '{text}' is an id like any other in 2 of 6 rows of 'user'"
    assert said in caplog.text
    assert "rows of 'category'" not in caplog.text  # a category may be called so
    caplog.clear()
    only = "log.only={column='user', filled=true}"
    prepare(tmp_path / "told", IMPRESSIONS, f"tables.log.missing=['{text}']", only)
    assert "an id like any other" not in caplog.text
