"""JDsearch files as dataset directories: each trap of the format, and the official sample."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.data.prepare.logs.jdsearch import (
    BEHAVIOR_COLUMNS,
    PRODUCT_COLUMNS,
    prepare_jdsearch,
    read_jdsearch,
)
from cdp_torchrec.data.schema import DatasetError
from tests.data.read_log import read_log, refused, write_lines

PRODUCTS = (
    # item, name, brand, the four levels, shop
    "1\tx\x18y\t7\tseven\t10\ta\t20\tb\t30\tc\t40\td\t5",
    "2\tx\t7\tseven\t11\ta\t21\tb\t30\tc\t40\td\t",
    '3\t"x\t\t\t10\ta\t20\tb\t\t\t\t\t6',
)


def search(
    items: str = "1_2",
    labels: str = "1.0_0.0",
    queries: str = "-1_q",
    history: str = "2_1",
    types: str = "CLICK_ORD",
    times: str = "0_27_100",
    query: str = "red\x18shoe",
) -> str:
    return "\t".join([query, items, labels, queries, history, types, times])


def write_log(folder: Path, *rows: str, header: bool = True) -> Path:
    heads = ["\t".join(names) for names in (BEHAVIOR_COLUMNS, PRODUCT_COLUMNS) if header]
    write_lines(folder / "user_behavior_data.txt", *heads[:1], *rows)
    write_lines(folder / "product_meta_data.txt", *heads[1:], *PRODUCTS)
    return folder


@pytest.mark.parametrize("header", [True, False])
def test_a_row_becomes_a_request_of_its_own_user(tmp_path: Path, header: bool) -> None:
    rows = [search("1_3_9", "2.0_0.0_0.0")] * 2
    log = read_log(read_jdsearch, write_log(tmp_path, *rows, header=header))
    train, test = log.requests
    assert {train["user_id"], test["user_id"]} == {1, 2}, "the row is the user"
    assert train["timestamp"] < log.spec.test_from == test["timestamp"]
    place = [train["item_id"].index(item) for item in "139"]
    names = ("category_1", "category_2", "category_id", "category_4", "brand", "shop", "label")
    assert {name: [train[name][n] for n in place] for name in names} == {
        "category_1": ["10", "10", None],
        "category_2": ["10/20", "10/20", None],
        "category_id": ["10/20/30", None, None],
        "category_4": ["10/20/30/40", None, None],
        "brand": ["7", None, None],
        "shop": ["5", "6", None],
        "label": [1, 0, 0],
    }
    assert train["query_id"] == "red\x18shoe"
    assert train["query_terms"] == ["red", "shoe"]
    assert train["log_gap"] == pytest.approx(math.log(101))


def test_a_category_is_the_path_to_it_because_levels_have_several_parents(tmp_path: Path) -> None:
    # Products 1 and 2 are both of level-3 category 30, under other parents.
    log = read_log(read_jdsearch, write_log(tmp_path, search(), search()))
    row = log.requests[0]
    categories = dict(zip(row["item_id"], row["category_id"], strict=True))
    assert categories == {"1": "10/20/30", "2": "11/21/30"}
    assert {b["item"]: b["category"] for b in log.behaviours} == categories


def test_the_order_of_the_file_does_not_tell_the_label(tmp_path: Path) -> None:
    items = "_".join(str(n) for n in range(1, 11))
    labels = "_".join(["1.0"] + ["0.0"] * 9)
    write_log(tmp_path, *[search(items, labels)] * 150)
    log = read_log(read_jdsearch, tmp_path)
    places = [row["label"].index(1) for row in log.requests]
    assert np.bincount(places, minlength=10) == pytest.approx([15] * 10, abs=14)
    assert log != read_log(read_jdsearch, tmp_path, seed=1)


def test_behaviours_lie_before_their_request_by_all_gaps_behind_them(tmp_path: Path) -> None:
    """The last gap is that to the search; without it, the last behaviour would lie at it."""
    rows = [search(times="0_27_100"), search(times="0_0_0")]
    log = read_log(read_jdsearch, write_log(tmp_path, *rows))
    moment = {row["user_id"]: row["timestamp"] for row in log.requests}
    before = [
        (b["user_id"], b["item"], b["action"], moment[b["user_id"]] - b["timestamp"])
        for b in log.behaviours
    ]
    assert before == [
        (1, "2", "CLICK", 127_002),
        (1, "1", "ORD", 100_001),
        (2, "2", "CLICK", 2),
        (2, "1", "ORD", 1),
    ]


@pytest.mark.slow
def test_a_user_may_have_no_history(tmp_path: Path) -> None:
    rows = [search(), search("2_1", "3.0_0.0", "", "", "", "")]
    log = read_log(read_jdsearch, write_log(tmp_path, *rows))
    assert {b["user_id"] for b in log.behaviours} == {1}
    gaps = {row["user_id"]: row["log_gap"] for row in log.requests}
    assert gaps == {1: pytest.approx(math.log(101)), 2: None}


@pytest.mark.slow
def test_the_first_line_of_a_product_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_log(tmp_path, search(), search())
    with (tmp_path / "product_meta_data.txt").open("a") as file:
        file.write(PRODUCTS[0].replace("\t5", "\t99") + "\n")
    log = read_log(read_jdsearch, tmp_path)
    assert sorted(log.requests[0]["shop"], key=str) == ["5", None]
    assert "1 lines left out: their product has an earlier line" in caplog.text


BAD_ROWS = {
    "labels": (search(labels="1.0"), "candidate_wid_list and candidate_label_list are lists of"),
    "label": (search(labels="1.0_9.0"), "candidate_label_list holds something else than 0, 1, 2"),
    "types": (search(types="CLICK"), "history_wid_list and history_type_list are lists of uneq"),
    "queries": (search(queries="-1"), "history_wid_list and history_qry_list are lists of uneq"),
    "type": (search(types="CLICK_VIEW"), "history_type_list holds something else than CLICK,"),
    "times": (search(times="0_27"), "history_time_list must hold one element more than history"),
    "time": (search(times="0_x_1"), "history_time_list holds something else than a whole number"),
    "milliseconds": (search(times="0_27000_99000000"), "spans more than two years; it holds gaps"),
    "no candidates": (search("", ""), "candidate_wid_list is empty"),
    "empty id": (search("1_", "1.0_0.0"), "candidate_wid_list holds an empty id"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named_with_their_line(tmp_path: Path, case: str) -> None:
    row, message = BAD_ROWS[case]
    write_log(tmp_path, search(), row, search())
    refused(read_jdsearch, tmp_path, f"{tmp_path / 'user_behavior_data.txt'}: line 3: ", message)


@pytest.mark.slow
def test_files_of_another_form_are_named(tmp_path: Path) -> None:
    write_log(tmp_path, search(), search())
    path = tmp_path / "user_behavior_data.txt"
    text = path.read_text()
    path.write_text(text.replace("\t", ","))
    refused(read_jdsearch, tmp_path, "line 1 has 1 cells, but 7 columns are named")
    path.write_text(text.replace("history_time_list", "history_gaps"))
    refused(read_jdsearch, tmp_path, "column 'history_time_list' is missing, found ['query', 'c")
    path.write_text(text[:-30])
    refused(read_jdsearch, tmp_path, "malformed line: CSV parse error: Row #3: Expected 7 columns")
    (tmp_path / "product_meta_data.txt").unlink()
    refused(read_jdsearch, tmp_path, "no product_meta_data.txt there (plain, .gz or .xz)")


@pytest.mark.slow
def test_nothing_is_left_of_a_refused_log(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", search(), search(labels="1.0"))
    with pytest.raises(DatasetError, match="of unequal length: 2 and 1"):
        prepare_jdsearch(log, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_the_official_sample_holds_what_its_files_say(tmp_path: Path) -> None:
    source = os.environ.get("CDP_TORCHREC_JDSEARCH")
    if not source:
        pytest.skip("CDP_TORCHREC_JDSEARCH does not name a directory of the official samples")
    # Three users are too few for a dataset: none of them did anything with a candidate before.
    log = read_log(read_jdsearch, Path(source))
    labels = [row["label"] for row in log.requests]
    assert (len(labels), sum(map(len, labels)), sum(map(sum, labels))) == (3, 262, 5)
    assert len(log.behaviours) == 230
    moment = {row["user_id"]: row["timestamp"] for row in log.requests}
    assert all(b["timestamp"] < moment[b["user_id"]] for b in log.behaviours)
    assert {row["label"][0] for row in log.requests} == {0}, "in the files, positives come first"
