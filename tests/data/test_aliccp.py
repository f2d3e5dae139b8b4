"""Ali-CCP files as dataset directories: each trap of the format."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from cdp_torchrec.data.prepare.logs.aliccp import prepare_aliccp, read_aliccp
from cdp_torchrec.data.schema import DatasetError
from tests.data.read_log import ReadLog, read_log, refused, write_lines


def features(*triples: tuple[str, int, float]) -> str:
    """feature_num and feature_list."""
    text = "\x01".join(f"{field}\x02{feature}\x03{value}" for field, feature, value in triples)
    return f"{len(triples)},{text}"


def user(index: str, number: int, *more: tuple[str, int, float]) -> str:
    return f"{index},{features(('101', number, 1.0), ('121', 40, 1.0), *more)}"


def shown(sample: int, click: int, buy: int, index: str, item: int, *more: tuple) -> str:
    own = (("205", item, 1.0), ("206", 60 + item, 1.0), ("301", 9, 1.0))
    return f"{sample},{click},{buy},{index},{features(*own, *more)}"


LINES = {
    "common_features_train.csv": [
        user("ab1", 7, ("109_14", 5, 2.3), ("110_14", 8, 0.7), ("109_14", 6, 1.1)),
        user("ab2", 7),
        user("ab3", 8),
    ],
    "sample_skeleton_train.csv": [
        shown(1, 0, 0, "ab1", 1, ("210", 3, 1.0), ("210", 4, 1.0), ("508", 99, 2.3)),
        shown(2, 1, 1, "ab1", 2, ("853", 77, 0.5), ("853", 78, 1.25), ("216", 21, 1.0)),
        shown(3, 0, 1, "ab1", 3),  # bought but not clicked
        shown(4, 1, 0, "ab2", 1),
    ],
    "common_features_test.csv": [user("ab1", 7)],
    "sample_skeleton_test.csv": [shown(5, 0, 0, "ab1", 2), shown(6, 1, 0, "ab1", 3)],
}


def write_log(folder: Path, lines: Mapping[str, list[str]] | None = None) -> Path:
    for name, rows in (LINES | dict(lines or {})).items():
        write_lines(folder / name, *rows)
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> ReadLog:
    return read_log(read_aliccp, write_log(tmp_path_factory.mktemp("log")))


def test_impressions_of_one_state_of_a_user_become_a_request(log: ReadLog) -> None:
    first = log.by_id()["train/ab1"]
    assert first == {
        "request_id": "train/ab1",
        "user_id": "7",
        "timestamp": first["timestamp"],
        "user_121": "40",
        **{f"user_{field}": None for field in (122, 124, 125, 126, 127, 128, 129)},
        # A field may stand there many times: a dictionary would keep the last one.
        "history_category": ["5", "6"],
        "history_shop": ["8"],
        "history_brand": [],
        "history_intention": [],
        "list_length": 2,
        "item_id": ["1", "2"],
        "category_id": ["61", "62"],
        "shop": [None, None],
        "brand": [None, "21"],
        "category_weight": [2.3, 0.0],
        "shop_weight": [0.0, 0.0],
        "brand_weight": [0.0, 0.0],
        "intention_weight": [0.0, 1.75],
        "scene": ["9", "9"],
        "label": [0, 1],
    }


def test_what_was_bought_but_not_clicked_is_left_out_and_counted(log: ReadLog) -> None:
    assert sum(len(row["label"]) for row in log.requests) == 5
    assert "; 1 impressions bought but not clicked left out" in log.spec.source


def test_requests_of_the_test_files_come_after_those_of_training(log: ReadLog) -> None:
    """An index may be in both. Users without impressions are no requests."""
    late = [row["request_id"] for row in log.requests if row["timestamp"] >= log.spec.test_from]
    assert late == ["test/ab1"]
    assert {row["request_id"] for row in log.requests} == {"train/ab1", "train/ab2", "test/ab1"}


def test_totals_of_a_user_are_no_behaviours(log: ReadLog) -> None:
    assert log.behaviours == []


BAD_LINES = {
    "count": (
        "sample_skeleton_train.csv",
        shown(9, 0, 0, "ab1", 1)[:-12],
        "feature_num is not the number of features in feature_list: 3 and 2",
    ),
    "cut": ("sample_skeleton_train.csv", "9,0,0,ab", "malformed line: CSV parse error: Row #5"),
    "separators": (
        "common_features_train.csv",
        "ab9,1,101:7:1.0",
        "feature_list holds something else than field 0x02 feature 0x03 value: 101:7:1.0",
    ),
    "click": ("sample_skeleton_train.csv", shown(9, 2, 0, "ab1", 1), "click is neither 0 nor 1: 2"),
    "item": ("sample_skeleton_test.csv", f"9,0,0,ab1,{features(('206', 1, 1.0))}", "no item (fie"),
    "user": (
        "common_features_train.csv",
        f"ab9,{features(('121', 1, 1.0))}",
        "no user (field 101)",
    ),
    "index": ("sample_skeleton_train.csv", shown(9, 0, 0, "zz", 1), "index zz is not in common_f"),
    "twice": ("common_features_test.csv", user("ab1", 7), "index ab1 occurs in line 1 and line 2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines_are_named(tmp_path: Path, case: str) -> None:
    name, line, message = BAD_LINES[case]
    log = write_log(tmp_path, {name: [*LINES[name], line]})
    refused(read_aliccp, log, f"{log / name}: ", message)


@pytest.mark.slow
def test_files_of_another_form_are_named(tmp_path: Path) -> None:
    path = write_log(tmp_path) / "common_features_test.csv"
    path.write_text("common_features_index,feature_num,feature_list\n" + path.read_text())
    refused(read_aliccp, tmp_path, "line 1 is a header, but none is expected")
    path.write_text(LINES["common_features_test.csv"][0].replace(",", "\t"))
    refused(read_aliccp, tmp_path, "line 1 has 1 cells, but 3 columns are named")
    path.unlink()
    refused(read_aliccp, tmp_path, "no common_features_test.csv there (plain, .gz or .xz)")


@pytest.mark.slow
def test_nothing_is_left_of_a_refused_log(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", {"sample_skeleton_test.csv": [shown(9, 2, 0, "ab1", 1)]})
    with pytest.raises(DatasetError, match="click is neither 0 nor 1"):
        prepare_aliccp(log, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
