"""MIND (Microsoft News): from the official files to a dataset directory.

request    a row of behaviors.tsv: the articles of a page, in an order that the files shuffled
query      there is none
item       article; its category and subcategory
context    hour, weekday, length of the list
scene      there is none: neither page nor client is logged
history    articles read before the log, and the clicks of earlier requests
label      the article was clicked

Point in time. Each row repeats the history of its user: what was read in the weeks before, oldest
first, without times, and the same for all rows of a user. It becomes behaviours once, in that
order, a second apart, before the first request of all. Should a later row of the user bring more,
only what it adds is new: readings of an article beyond those that earlier histories and clicks
know of. They get the milliseconds just before that row. A click is known from the time of its list
on, to later requests only. So gaps between behaviours are made up, their order is not.

The times of the log have no zone; hour and weekday are as they stand.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import duckdb

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.prepare.csv_format import CsvFormat
from cdp_torchrec.data.prepare.csv_tables import needed_csv
from cdp_torchrec.data.prepare.database import (
    EngineLimits,
    Rule,
    check_lines,
    check_unique_lines,
    list_rule,
    load_csv,
    matches,
    scalar,
)
from cdp_torchrec.data.prepare.features import candidate_id, request_id, request_number
from cdp_torchrec.data.prepare.log_tables import DAY_MS, number_requests, prepare_log
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.schema import DatasetError, Schema

_BEHAVIORS = ("impression_id", "user_id", "time", "history", "impressions")
_NEWS = (
    "news_id",
    "category",
    "subcategory",
    "title",
    "abstract",
    "url",
    "title_entities",
    "abstract_entities",
)
_TIME = "%m/%d/%Y %I:%M:%S %p"
_IMPRESSIONS = "string_split(impressions, ' ')"
_HISTORY = "coalesce(string_split(history, ' '), [])"

_FEATURES = (
    request_id("user_id", "user", "user"),
    candidate_id("item_id", "item", "item"),
    candidate_id("category_id", "item", "category"),
    candidate_id("subcategory", "item"),
    request_id("hour", "context"),
    request_id("weekday", "context"),
    request_number("list_length", "context"),
)


def prepare_mind(source: Path, output: Path, *, limits: EngineLimits | None = None) -> Schema:
    """Prepare the official files as a dataset directory; those of `dev` are the test split.

    Args:
        source: directory with one folder whose name ends in `train` and one whose name ends in
            `dev`, such as `MINDsmall_train`, each with `behaviors.tsv` and `news.tsv`.
        output: dataset directory to make; must not exist.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: files are missing, damaged or inconsistent, or `output` exists.
        PreparationError: the dataset cannot be written.
    """
    return prepare_log(source, output, lambda db: read_mind(db, source), limits)


def read_mind(connection: duckdb.DuckDBPyConnection, source: Path) -> DatasetSpec:
    """Make the tables of `prepare_log` of the files.

    Raises:
        DatasetError: files are missing, damaged or inconsistent.
    """
    folders = {split: _folder(source, split) for split in ("train", "dev")}
    _load_news(connection, folders.values())
    _load_requests(connection, folders)
    test_from = _start_of_dev(connection, folders)
    _make_candidates(connection)
    _make_behaviours(connection)
    names = " and ".join(folder.name for folder in folders.values())
    return DatasetSpec(
        name="mind",
        source=f"MIND (Microsoft News), {names}",
        features=_FEATURES,
        test_from=test_from,
        category_entity="category",
        action_entity="action",
    )


def _folder(source: Path, split: str) -> Path:
    if not source.is_dir():
        raise DatasetError(f"{source}: no such directory")
    found = sorted(path for path in source.iterdir() if path.name.endswith(split))
    if len(found) != 1:
        names = [path.name for path in found] or sorted(path.name for path in source.iterdir())
        raise DatasetError(
            f"{source}: expected one folder whose name ends in '{split}', such as "
            f"MINDsmall_{split}, found {names}"
        )
    return found[0]


def _form(columns: tuple[str, ...]) -> CsvFormat:
    """Titles hold quotation marks that mean nothing."""
    return CsvFormat(delimiter="\t", quote=None, names=columns)


def _load_news(connection: duckdb.DuckDBPyConnection, folders: Iterable[Path]) -> None:
    """Make table `news` (item, category, subcategory): of both files, the first one counts."""
    connection.execute("""
        CREATE TABLE all_news (split INT, item VARCHAR, category VARCHAR, subcategory VARCHAR)
    """)
    for split, folder in enumerate(folders):
        path = needed_csv(folder, "news.tsv")
        columns = ("news_id", "category", "subcategory")
        load_csv(connection, "raw_news", path, columns, _form(_NEWS))
        check_lines(connection, "raw_news", path, [Rule("news_id IS NULL", "news_id is empty")])
        check_unique_lines(connection, "raw_news", path, "news_id")
        connection.execute(f"""
            INSERT INTO all_news SELECT {split}, news_id, category, subcategory FROM raw_news;
            DROP TABLE raw_news
        """)
    connection.execute("""
        CREATE TABLE news AS
        SELECT item, arg_min(category, split) AS category,
            arg_min(subcategory, split) AS subcategory
        FROM all_news GROUP BY item;
        DROP TABLE all_news
    """)


def _load_requests(connection: duckdb.DuckDBPyConnection, folders: Mapping[str, Path]) -> None:
    """Make table `requests`."""
    connection.execute("""
        CREATE TABLE all_rows (
            split VARCHAR, request_id VARCHAR, user_id VARCHAR, timestamp BIGINT, history VARCHAR,
            items VARCHAR[]
        )
    """)
    for split, folder in folders.items():
        path = needed_csv(folder, "behaviors.tsv")
        load_csv(connection, "raw_rows", path, _BEHAVIORS, _form(_BEHAVIORS))
        check_lines(connection, "raw_rows", path, _rules())
        check_unique_lines(connection, "raw_rows", path, "impression_id")
        connection.execute(f"""
            INSERT INTO all_rows
            SELECT '{split}', '{split}/' || impression_id, user_id,
                epoch_ms(strptime(time, '{_TIME}')), history, {_IMPRESSIONS}
            FROM raw_rows;
            DROP TABLE raw_rows
        """)
    connection.execute(f"""
        CREATE TABLE rows AS
        SELECT *, timestamp // {DAY_MS // 24} % 24 AS hour,
            (timestamp // {DAY_MS} + 3) % 7 AS weekday, len(items) AS list_length
        FROM all_rows;
        DROP TABLE all_rows
    """)
    number_requests(connection, "rows", order="timestamp, request_id")


def _rules() -> list[Rule]:
    return [
        Rule("impression_id IS NULL OR user_id IS NULL", "impression_id or user_id is empty"),
        Rule(
            f"try_strptime(time, '{_TIME}') IS NULL",
            "time is no moment such as 11/9/2019 9:05:58 AM",
            "time",
        ),
        list_rule(_HISTORY, "x = ''", "history holds an empty id"),
        Rule("impressions IS NULL", "impressions is empty"),
        list_rule(
            _IMPRESSIONS,
            f"NOT {matches('x', '[^ ]+-[01]')}",
            "impressions holds something else than an article with -0 or -1 (test files of MIND "
            "have no labels)",
        ),
    ]


def _start_of_dev(connection: duckdb.DuckDBPyConnection, folders: Mapping[str, Path]) -> int:
    def moment(which: str, split: str) -> int:
        return scalar(
            connection, f"SELECT {which}(timestamp) FROM requests WHERE split = '{split}'"
        )

    last, first = moment("max", "train"), moment("min", "dev")
    if last >= first:
        raise DatasetError(
            f"{folders['dev'] / 'behaviors.tsv'}: starts at {utc(first)}, but "
            f"{folders['train'].name} runs until {utc(last)}; dev must come after train"
        )
    return first


def _make_candidates(connection: duckdb.DuckDBPyConnection) -> None:
    """Make table `candidates`; of an article that a list repeats, the first place counts."""
    connection.execute("""
        CREATE TABLE candidates AS
        SELECT number, place, item AS item_id, category AS category_id, subcategory, label
        FROM (
            SELECT number, item, min(place) AS place, max(label) AS label
            FROM (
                SELECT number, left(listed, -2) AS item, right(listed, 1)::INTEGER AS label, place
                FROM (
                    SELECT number, unnest(items) AS listed, generate_subscripts(items, 1) AS place
                    FROM requests
                )
            )
            GROUP BY ALL
        )
        LEFT JOIN news USING (item)
    """)


def _make_behaviours(connection: duckdb.DuckDBPyConnection) -> None:
    """Make view `behaviours`: what each history of a user adds, and the clicks of the requests."""
    connection.execute(f"""
        CREATE TABLE clicks AS
        SELECT user_id, item_id AS item, timestamp
        FROM candidates JOIN requests USING (number) WHERE label = 1;
        CREATE TABLE histories AS
        SELECT user_id, history, since,
            row_number() OVER (PARTITION BY user_id ORDER BY since, history) AS version
        FROM (SELECT user_id, history, min(timestamp) AS since FROM requests GROUP BY ALL);
        CREATE TABLE readings AS
        SELECT *, row_number() OVER (
            PARTITION BY user_id, version, item ORDER BY place DESC) AS nth_last
        FROM (
            SELECT user_id, version, since, unnest({_HISTORY}) AS item,
                generate_subscripts({_HISTORY}, 1) AS place
            FROM histories
        );
        CREATE TABLE additions AS
        -- How often each item was read according to a history, beyond what was known before it:
        -- of each history, what it has beside the clicks that came before it.
        SELECT user_id, version, item, n - coalesce(max(n) OVER (
                PARTITION BY user_id, item ORDER BY version
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ), 0) AS num_new
        FROM (
            SELECT counted.user_id, version, counted.item,
                greatest(counted.n - coalesce(clicked, 0), 0) AS n
            FROM (
                SELECT user_id, version, since, item, count(*) AS n FROM readings GROUP BY ALL
            ) counted
            ASOF LEFT JOIN (
                SELECT *, row_number() OVER (
                    PARTITION BY user_id, item ORDER BY timestamp) AS clicked
                FROM clicks
            ) c
            ON c.user_id = counted.user_id AND c.item = counted.item
                AND c.timestamp < counted.since
        );
        CREATE VIEW behaviours AS
        SELECT user_id, item, category, 'click' AS action, timestamp
        FROM (
            SELECT user_id, item, CASE version
                WHEN 1 THEN (SELECT min(timestamp) FROM requests) - 1000 * before_end
                ELSE since - before_end END AS timestamp
            FROM (
                SELECT *, row_number() OVER (
                    PARTITION BY user_id, version ORDER BY place DESC) AS before_end
                FROM readings JOIN additions USING (user_id, version, item)
                WHERE nth_last <= num_new
            )
            UNION ALL
            FROM clicks
        )
        LEFT JOIN news USING (item)
    """)
