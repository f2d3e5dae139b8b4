"""JDsearch (product search of JD.com): from the official files to a dataset directory.

request    a row of user_behavior_data.txt: the last search of one user, with its candidates
query      the search text, whole and as a bag of its terms
item       product; its brand, shop and category; the gate is the path of the first three levels
context    time since the user's last behaviour, length of the list
scene      there is none: neither page, client nor source is logged
history    everything the user did in the year before: click, cart, order, follow
label      clicked, put into the cart or bought

What the files do not say, and what stands in for it:
* Users have no id and one request each. The number of the row is the user.
* No time is absolute; all searches are of 2022-10-17. Rows get made-up moments of that day, in a
  random order, the last tenth of which is the test split. Behaviours lie before their request by
  the logged gaps, which are exact to the second. There is one gap more than behaviours: the last
  one leads to the search. A gap of 0 s counts as a millisecond, so that a behaviour lies before its
  request and after the one before it. Hour and weekday exist nowhere.
* The order of the candidates is no position. It tells the label, positives come first, so lists
  are put into the order of a keyed hash.
* Level 3 and 4 categories are not unique: some stand under several parents. So a category is the
  path down to it. Products without metadata have none, which passes no gate.
"""

import logging
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.csv_format import CsvFormat
from cdp_torchrec.data.prepare.csv_tables import first_row, needed_csv
from cdp_torchrec.data.prepare.database import (
    EngineLimits,
    Rule,
    check_lines,
    list_rule,
    load_csv,
    matches,
    scalar,
)
from cdp_torchrec.data.prepare.draws import random_number
from cdp_torchrec.data.prepare.features import (
    candidate_id,
    request_id,
    request_ids,
    request_number,
)
from cdp_torchrec.data.prepare.log_tables import number_requests, prepare_log
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.schema import Schema

logger = logging.getLogger(__name__)

BEHAVIOR_COLUMNS = (
    "query",
    "candidate_wid_list",
    "candidate_label_list",
    "history_qry_list",
    "history_wid_list",
    "history_type_list",
    "history_time_list",
)
PRODUCT_COLUMNS = (
    "wid",
    "name",
    "brand_id",
    "brand_name",
    *(f"cate_{part}_{level}" for level in (1, 2, 3, 4) for part in ("id", "name")),
    "shop_id",
)
_ACTIONS = ("CLICK", "CART", "ORD", "FLW")
_DAY = 1_665_964_800_000  # 2022-10-17 00:00 UTC
_TEST_SHARE = 10
"""One of so many rows is in the test split."""
_LONGEST_S = 2 * 366 * 24 * 3600
_TERMS = "string_split({}, chr(24))"

_FEATURES = (
    request_id("query_id", "query", "query"),
    request_ids("query_terms", "query", "term"),
    candidate_id("item_id", "item", "item"),
    candidate_id("category_id", "item", "category"),
    candidate_id("category_1", "item"),
    candidate_id("category_2", "item"),
    candidate_id("category_4", "item"),
    candidate_id("brand", "item"),
    candidate_id("shop", "item"),
    request_number("log_gap", "context"),
    request_number("list_length", "context"),
)


def prepare_jdsearch(
    source: Path, output: Path, *, seed: int = 0, limits: EngineLimits | None = None
) -> Schema:
    """Prepare the official files as a dataset directory.

    Args:
        source: directory of `user_behavior_data.txt` and `product_meta_data.txt`, or of the
            official samples of both; plain, .gz or .xz.
        output: dataset directory to make; must not exist.
        seed: of the order of rows and candidates.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: files are missing, damaged or inconsistent, or `output` exists.
        PreparationError: the dataset cannot be written.
    """
    return prepare_log(source, output, lambda db: read_jdsearch(db, source, seed=seed), limits)


def read_jdsearch(
    connection: duckdb.DuckDBPyConnection, source: Path, *, seed: int = 0
) -> DatasetSpec:
    """Make the tables of `prepare_log` of the files.

    Raises:
        DatasetError: files are missing, damaged or inconsistent.
    """
    behaviors = _found(source, "user_behavior_data")
    _load_products(connection, _found(source, "product_meta_data"))
    _load_rows(connection, behaviors, seed)
    _make_candidates(connection, seed)
    _make_behaviours(connection)
    num_rows = scalar(connection, "SELECT count(*) FROM requests")
    return DatasetSpec(
        name="jdsearch",
        source=f"JDsearch, {behaviors.name}; order of rows and candidates by seed {seed}",
        features=_FEATURES,
        test_from=_DAY + num_rows - -(-num_rows // _TEST_SHARE),
        category_entity="category",
        action_entity="action",
    )


def _found(source: Path, name: str) -> Path:
    return needed_csv(source, f"{name}.txt", f"{name}_sample.txt")


def _form(path: Path, columns: tuple[str, ...]) -> CsvFormat:
    """The official samples have a header; a file may come without."""
    form = CsvFormat(delimiter="\t", quote=None)
    has_header = form.cells(first_row(path, form))[:1] == [columns[0]]
    return form if has_header else CsvFormat(delimiter="\t", quote=None, names=columns)


def _load_products(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Make table `products` (item, category_id, category_1 ..., brand, shop), one row each."""
    columns = ("wid", "brand_id", *(f"cate_id_{level}" for level in (1, 2, 3, 4)), "shop_id")
    load_csv(connection, "raw_products", path, columns, _form(path, PRODUCT_COLUMNS))
    check_lines(connection, "raw_products", path, [Rule("wid IS NULL", "wid is empty")])
    # Concatenation by || is null where a part is: a path with a gap is no path.
    paths = {"category_1": 1, "category_2": 2, "category_id": 3, "category_4": 4}
    levels = ", ".join(
        " || '/' || ".join(f"cate_id_{n}" for n in range(1, level + 1)) + f" AS {name}"
        for name, level in paths.items()
    )
    connection.execute(f"""
        CREATE TABLE products AS
        SELECT wid AS item, {levels}, brand_id AS brand, shop_id AS shop FROM raw_products
        QUALIFY row_number() OVER (PARTITION BY wid ORDER BY line) = 1
    """)
    num_repeated = scalar(
        connection, "SELECT (SELECT count(*) FROM raw_products) - count(*) FROM products"
    )
    if num_repeated:
        logger.warning(
            "%s: %d lines left out: their product has an earlier line", path, num_repeated
        )
    connection.execute("DROP TABLE raw_products")


def _load_rows(connection: duckdb.DuckDBPyConnection, path: Path, seed: int) -> None:
    """Make table `requests`, with the lists of each row."""
    load_csv(connection, "raw_rows", path, BEHAVIOR_COLUMNS, _form(path, BEHAVIOR_COLUMNS))
    check_lines(connection, "raw_rows", path, _rules())
    connection.execute(f"""
        CREATE TABLE rows AS
        SELECT row AS request_id, row AS user_id, query AS query_id,
            coalesce({_TERMS.format("query")}, []) AS query_terms,
            ln(1 + gaps[-1]) AS log_gap, len(items) AS list_length,
            items, labels, history_items, history_types, gaps
        FROM (
            SELECT line - (SELECT min(line) FROM raw_rows) + 1 AS row, query,
                {_parts("candidate_wid_list")} AS items,
                {_parts("candidate_label_list")} AS labels,
                {_parts("history_wid_list")} AS history_items,
                {_parts("history_type_list")} AS history_types,
                {_parts("history_time_list")}::DOUBLE[]::BIGINT[] AS gaps
            FROM raw_rows
        );
        DROP TABLE raw_rows
    """)
    order = random_number("'row'", "request_id", seed=seed)
    moment = f"{_DAY} + number AS timestamp"
    number_requests(connection, "rows", order=f"{order}, request_id", added=moment)


def _parts(column: str) -> str:
    return f"coalesce(string_split({column}, '_'), [])"


def _rules() -> list[Rule]:
    items, labels = _parts("candidate_wid_list"), _parts("candidate_label_list")
    history, times = _parts("history_wid_list"), _parts("history_time_list")
    rules = [
        Rule("candidate_wid_list IS NULL", "candidate_wid_list is empty"),
        Rule(
            f"len({items}) <> len({labels})",
            "candidate_wid_list and candidate_label_list are lists of unequal length",
            f"len({items}) || ' and ' || len({labels})",
        ),
        list_rule(items, "x = ''", "candidate_wid_list holds an empty id"),
        list_rule(
            labels,
            f"NOT {matches('x', '[0-3]([.]0+)?')}",
            "candidate_label_list holds something else than 0, 1, 2, 3",
        ),
    ]
    for name in ("history_qry_list", "history_type_list"):
        rules.append(
            Rule(
                f"len({history}) <> len({_parts(name)})",
                f"history_wid_list and {name} are lists of unequal length",
                f"len({history}) || ' and ' || len({_parts(name)})",
            )
        )
    actions = ", ".join(f"'{action}'" for action in _ACTIONS)
    return [
        *rules,
        Rule(
            f"len({times}) <> len({history}) + 1 AND len({history}) + len({times}) > 0",
            "history_time_list must hold one element more than history_wid_list, the gap to the "
            "search",
            f"len({times}) || ' for ' || len({history})",
        ),
        list_rule(history, "x = ''", "history_wid_list holds an empty id"),
        list_rule(
            _parts("history_type_list"),
            f"x NOT IN ({actions})",
            f"history_type_list holds something else than {', '.join(_ACTIONS)}",
        ),
        list_rule(
            times,
            f"NOT {matches('x', '[0-9]{1,9}([.]0+)?')}",
            "history_time_list holds something else than a whole number of seconds",
        ),
        Rule(
            f"list_sum({times}::DOUBLE[]) > {_LONGEST_S}",
            "history_time_list spans more than two years; it holds gaps in seconds",
            f"list_sum({times}::DOUBLE[])::BIGINT || ' s'",
        ),
    ]


def _make_candidates(connection: duckdb.DuckDBPyConnection, seed: int) -> None:
    """Make view `candidates`: lists in the order of a hash, because theirs tells the label."""
    place = random_number("'candidate'", "request_id", "listed", seed=seed)
    connection.execute(f"""
        CREATE VIEW candidates AS
        SELECT number, {place} AS place, item AS item_id, category_id, category_1, category_2,
            category_4, brand, shop, (grade::DOUBLE > 0)::INTEGER AS label
        FROM (
            SELECT number, request_id, unnest(items) AS item, unnest(labels) AS grade,
                generate_subscripts(items, 1) AS listed
            FROM requests
        )
        LEFT JOIN products USING (item)
    """)


def _make_behaviours(connection: duckdb.DuckDBPyConnection) -> None:
    """Make view `behaviours`: each before its request by all gaps behind it."""
    connection.execute("""
        CREATE VIEW behaviours AS
        SELECT user_id, item, category_id AS category, action, timestamp
        FROM (
            SELECT user_id, item, action, request_time - (
                sum(1000 * gap + 1) OVER (
                    PARTITION BY user_id ORDER BY place DESC ROWS UNBOUNDED PRECEDING
                )
            )::BIGINT AS timestamp
            FROM (
                SELECT user_id, timestamp AS request_time, unnest(history_items) AS item,
                    unnest(history_types) AS action, unnest(gaps[2:]) AS gap,
                    generate_subscripts(history_items, 1) AS place
                FROM requests
            )
        )
        LEFT JOIN products USING (item)
    """)
