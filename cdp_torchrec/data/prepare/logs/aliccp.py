"""Ali-CCP (recommendations of Taobao, clicks and conversions): to a dataset directory.

request    all impressions of one user in one state: the rows of one common_features_index
query      there is none
item       product; its category, shop and brand; how much the user's history weighs in each
context    number of impressions of the request
scene      field 301, by which the files say where an item was shown
history    none in the store; what the files have of it are features
label      clicked

What the files do not say:
* **What a user did, one after the other.** They have no behaviours, only totals of a user without
  item and time: which categories, shops, brands and intentions, each with a weight. These have
  numbers of their own, so that they cannot be matched with those of a candidate. The files do the
  matching themselves: fields 508, 509, 702 and 853 of an impression hold the user's weight in its
  category, shop, brand and intentions. So weights of candidates and bags of users are features, the
  behaviour store is empty, and only models without a history have something to learn from.
* **Any time, and any request.** Requests get made-up moments in a random order; those of the
  official test files come after those of the training files.
* How an impression can be bought and not clicked: such rows are left out and counted.

The intentions of a candidate (field 210) are several, and a candidate has no bags: they are left
out, but for the weight of all of them together.
"""

import logging
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.csv_format import CsvFormat
from cdp_torchrec.data.prepare.csv_tables import needed_csv
from cdp_torchrec.data.prepare.database import (
    EngineLimits,
    Rule,
    check_lines,
    check_unique_lines,
    first_row,
    list_rule,
    load_csv,
    matches,
    scalar,
)
from cdp_torchrec.data.prepare.draws import random_number
from cdp_torchrec.data.prepare.features import (
    candidate_id,
    candidate_number,
    request_id,
    request_ids,
    request_number,
)
from cdp_torchrec.data.prepare.log_tables import number_requests, prepare_log
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.schema import DatasetError, Schema

logger = logging.getLogger(__name__)

_INDEX = "common_features_index"
_SKELETON = ("sample_id", "click", "buy", _INDEX, "feature_num", "feature_list")
_COMMON = (_INDEX, "feature_num", "feature_list")
_FEATURE = "[0-9]+(_[0-9]+)?\x02[0-9]+\x03-?[0-9]+([.][0-9]+)?([eE][+-]?[0-9]+)?"
_START = 1_514_764_800_000  # 2018-01-01 00:00 UTC, made up

_USER_FIELDS = ("121", "122", "124", "125", "126", "127", "128", "129")
_BAGS = {
    "history_category": "109_14",
    "history_shop": "110_14",
    "history_brand": "127_14",
    "history_intention": "150_14",
}
_ITEM_FIELDS = {
    "item_id": "205",
    "category_id": "206",
    "shop": "207",
    "brand": "216",
    "scene": "301",
}
_WEIGHTS = {
    "category_weight": "508",
    "shop_weight": "509",
    "brand_weight": "702",
    "intention_weight": "853",
}

_FEATURES = (
    request_id("user_id", "user", "user"),
    *(request_id(f"user_{field}", "user") for field in _USER_FIELDS),
    *(request_ids(name, "user") for name in _BAGS),
    candidate_id("item_id", "item", "item"),
    candidate_id("category_id", "item", "category"),
    candidate_id("shop", "item"),
    candidate_id("brand", "item"),
    *(candidate_number(name, "item") for name in _WEIGHTS),
    candidate_id("scene", "scene"),
    request_number("list_length", "context"),
)


def prepare_aliccp(
    source: Path, output: Path, *, seed: int = 0, limits: EngineLimits | None = None
) -> Schema:
    """Prepare the official files as a dataset directory.

    Args:
        source: directory of `sample_skeleton_{train,test}.csv` and
            `common_features_{train,test}.csv`; plain, .gz or .xz.
        output: dataset directory to make; must not exist.
        seed: of the order of the requests.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: files are missing, damaged or inconsistent, or `output` exists.
        PreparationError: the dataset cannot be written.
    """
    return prepare_log(source, output, lambda db: read_aliccp(db, source, seed=seed), limits)


def read_aliccp(
    connection: duckdb.DuckDBPyConnection, source: Path, *, seed: int = 0
) -> DatasetSpec:
    """Make the tables of `prepare_log` of the files.

    Raises:
        DatasetError: files are missing, damaged or inconsistent.
    """
    connection.execute(f"""
        CREATE TABLE users (
            request_id VARCHAR, split VARCHAR, user_id VARCHAR,
            {", ".join(f"user_{field} VARCHAR" for field in _USER_FIELDS)},
            {", ".join(f"{name} VARCHAR[]" for name in _BAGS)}
        );
        CREATE TABLE impressions (
            request_id VARCHAR, line BIGINT, label INTEGER,
            {", ".join(f"{name} VARCHAR" for name in _ITEM_FIELDS)},
            {", ".join(f"{name} DOUBLE" for name in _WEIGHTS)}
        )
    """)
    num_left_out = 0
    for split in ("train", "test"):
        _load_users(connection, source, split)
        num_left_out += _load_impressions(connection, source, split)
    _make_requests(connection, seed)
    columns = ", ".join([*_ITEM_FIELDS, *_WEIGHTS])
    connection.execute(f"""
        CREATE VIEW candidates AS
        SELECT number, line AS place, {columns}, label
        FROM impressions JOIN requests USING (request_id);
        CREATE TABLE behaviours (
            user_id VARCHAR, item VARCHAR, category VARCHAR, timestamp BIGINT
        )
    """)
    num_train = scalar(connection, "SELECT count(*) FILTER (split = 'train') FROM requests")
    return DatasetSpec(
        name="aliccp",
        source=f"Ali-CCP (Taobao); {num_left_out} impressions bought but not clicked left out",
        features=_FEATURES,
        test_from=_START + num_train,
        category_entity="category",
    )


def _form(columns: tuple[str, ...]) -> CsvFormat:
    return CsvFormat(names=columns, quote=None)


def _rules() -> list[Rule]:
    features = "string_split(feature_list, chr(1))"
    return [
        Rule(f"{_INDEX} IS NULL", f"{_INDEX} is empty"),
        list_rule(
            features,
            f"NOT {matches('x', _FEATURE)}",
            "feature_list holds something else than field 0x02 feature 0x03 value",
        ),
        Rule(
            f"try_cast(feature_num AS BIGINT) IS DISTINCT FROM coalesce(len({features}), 0)",
            "feature_num is not the number of features in feature_list",
            f"feature_num || ' and ' || coalesce(len({features}), 0)",
        ),
    ]


def _all_of(field: str, part: str) -> str:
    """SQL: all features (or values) of a field; a field may stand there many times."""
    feature, value = ("([0-9]+)", "") if part == "feature" else ("[0-9]+", "([^\x01]+)")
    return f"regexp_extract_all(feature_list, '(?:^|\x01){field}\x02{feature}\x03{value}', 1)"


def _load_users(connection: duckdb.DuckDBPyConnection, source: Path, split: str) -> None:
    """Add to table `users`: a row for each common_features_index."""
    path = needed_csv(source, f"common_features_{split}.csv")
    load_csv(connection, "raw", path, _COMMON, _form(_COMMON))
    no_user = Rule(f"len({_all_of('101', 'feature')}) = 0", "there is no user (field 101)")
    check_lines(connection, "raw", path, [*_rules(), no_user])
    check_unique_lines(connection, "raw", path, _INDEX)
    single = ", ".join(f"{_all_of(field, 'feature')}[1]" for field in ("101", *_USER_FIELDS))
    bags = ", ".join(_all_of(field, "feature") for field in _BAGS.values())
    connection.execute(f"""
        INSERT INTO users SELECT '{split}/' || {_INDEX}, '{split}', {single}, {bags} FROM raw;
        DROP TABLE raw
    """)


def _load_impressions(connection: duckdb.DuckDBPyConnection, source: Path, split: str) -> int:
    """Add to table `impressions`; returns how many rows were left out."""
    path = needed_csv(source, f"sample_skeleton_{split}.csv")
    load_csv(connection, "raw", path, _SKELETON[1:], _form(_SKELETON))
    rules = [
        *_rules(),
        Rule(f"NOT {matches('click', '[01]')}", "click is neither 0 nor 1", "click"),
        Rule(f"NOT {matches('buy', '[01]')}", "buy is neither 0 nor 1", "buy"),
        Rule(f"len({_all_of('205', 'feature')}) = 0", "there is no item (field 205)"),
    ]
    check_lines(connection, "raw", path, rules)
    unknown = first_row(
        connection,
        f"""
        SELECT line, {_INDEX} FROM raw ANTI JOIN users ON request_id = '{split}/' || {_INDEX}
        ORDER BY line LIMIT 1
        """,
    )
    if unknown:
        line, index = unknown
        raise DatasetError(
            f"{path}: line {line}: {_INDEX} {index} is not in common_features_{split}.csv"
        )
    num_left_out = scalar(connection, "SELECT count(*) FILTER (click = '0' AND buy = '1') FROM raw")
    if num_left_out:
        logger.warning("%s: %d rows left out: bought but not clicked", path, num_left_out)
    single = ", ".join(f"{_all_of(field, 'feature')}[1]" for field in _ITEM_FIELDS.values())
    # A field that is not there says that the history has nothing of the kind.
    weights = ", ".join(
        f"coalesce(list_sum({_all_of(field, 'value')}::DOUBLE[]), 0)" for field in _WEIGHTS.values()
    )
    connection.execute(f"""
        INSERT INTO impressions
        SELECT '{split}/' || {_INDEX}, line, click::INTEGER, {single}, {weights}
        FROM raw WHERE click = '1' OR buy = '0';
        DROP TABLE raw
    """)
    return num_left_out


def _make_requests(connection: duckdb.DuckDBPyConnection, seed: int) -> None:
    connection.execute("""
        CREATE TABLE rows AS
        SELECT * FROM users JOIN (
            SELECT request_id, count(*) AS list_length FROM impressions GROUP BY request_id
        ) USING (request_id);
        DROP TABLE users
    """)
    draw = random_number("'request'", "request_id", seed=seed)
    order = f"split = 'test', {draw}, request_id"
    number_requests(connection, "rows", order=order, added=f"{_START} + number AS timestamp")
