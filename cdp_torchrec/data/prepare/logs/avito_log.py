"""The official files of Avito Context Ad Clicks: read, and checked row by row.

impressions    search, ad, position, hist_ctr, is_click: contextual ads only
searches       search, timestamp, user_id, logged_on, text, location, category, params
ads            ad, category, location, price
users          user_id, agent, os, device
parents        category, parent
visits         user_id, ad, action (view, phone), timestamp

Ids are numbers. Times have no zone and are read as UTC, in ms.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.csv_format import CsvFormat
from cdp_torchrec.data.prepare.csv_tables import needed_csv
from cdp_torchrec.data.prepare.database import (
    Rule,
    check_lines,
    check_unique_lines,
    load_csv,
    matches,
    scalar,
)
from cdp_torchrec.data.schema import DatasetError

_FORM = CsvFormat(delimiter="\t", quote=None)
_TIMES = "['%Y-%m-%d %H:%M:%S.%g', '%Y-%m-%d %H:%M:%S']"
_STRING = r"""'(\\.|[^'\\])*'|"(\\.|[^"\\])*\""""
_PARAM = rf"""[0-9]+\s*:\s*(u?({_STRING})|\[({_STRING}|[^]'"])*\]|[^,{{}}\[\]'"]+)"""
"""A key and its value in a dictionary as Python writes it."""


def load_impressions(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make table `impressions`. Of other ads than contextual ones it is not said what was clicked.

    Raises:
        DatasetError: as all functions here: the file is missing or damaged, or a row makes no
            sense.
    """
    path = needed_csv(source, "trainSearchStream.tsv")
    columns = ("SearchID", "AdID", "Position", "ObjectType", "HistCTR", "IsClick")
    load_csv(connection, "raw", path, columns, _FORM)
    is_contextual = "ObjectType = '3'"
    rules = [
        *_id_rules("SearchID", "AdID"),
        Rule(f"NOT {matches('Position', '[1-9][0-9]*')}", "Position is no number from 1"),
        Rule(f"NOT {matches('ObjectType', '[123]')}", "ObjectType is none of 1, 2, 3"),
        Rule(
            f"{is_contextual} AND NOT {matches('IsClick', '[01]')}",
            "IsClick of a contextual ad is neither 0 nor 1",
            "IsClick",
        ),
        Rule(
            f"{is_contextual} AND NOT coalesce(try_cast(HistCTR AS DOUBLE) BETWEEN 0 AND 1, false)",
            "HistCTR of a contextual ad is no rate from 0 to 1",
            "HistCTR",
        ),
    ]
    check_lines(connection, "raw", path, rules)
    connection.execute(f"""
        CREATE TABLE impressions AS
        SELECT SearchID::BIGINT AS search, AdID::BIGINT AS ad, Position::BIGINT AS position,
            HistCTR::DOUBLE AS hist_ctr, IsClick::INTEGER AS is_click
        FROM raw WHERE {is_contextual};
        DROP TABLE raw
    """)
    if scalar(connection, "SELECT count(*) FROM impressions") == 0:
        raise DatasetError(f"{path}: no contextual ad (ObjectType 3) there")


def load_searches(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make table `searches`: those with impressions."""
    path = needed_csv(source, "SearchInfo.tsv")
    columns = ("SearchID", "SearchDate", "UserID", "IsUserLoggedOn", "SearchQuery", "LocationID")
    load_csv(connection, "raw", path, (*columns, "CategoryID", "SearchParams"), _FORM)
    check_lines(
        connection, "raw", path, [*_id_rules("SearchID", "UserID"), _time_rule("SearchDate")]
    )
    check_unique_lines(connection, "raw", path, "SearchID")
    params = _PARAM.replace("'", "''")
    connection.execute(f"""
        CREATE TABLE searches AS
        SELECT SearchID::BIGINT AS search, {_time("SearchDate")} AS timestamp,
            UserID::BIGINT AS user_id, IsUserLoggedOn AS logged_on,
            lower(trim(SearchQuery)) AS text, LocationID AS location, CategoryID AS category,
            coalesce(regexp_extract_all(SearchParams, '{params}'), []) AS params
        FROM raw SEMI JOIN impressions ON search = SearchID::BIGINT;
        DROP TABLE raw
    """)


def load_ads(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make tables `ads` and `parents`. Prices of 0 and less are unknown."""
    path = needed_csv(source, "AdsInfo.tsv")
    load_csv(connection, "raw", path, ("AdID", "LocationID", "CategoryID", "Price"), _FORM)
    price = Rule(
        "Price IS NOT NULL AND try_cast(Price AS DOUBLE) IS NULL", "Price is no number", "Price"
    )
    check_lines(connection, "raw", path, [*_id_rules("AdID"), price])
    check_unique_lines(connection, "raw", path, "AdID")
    connection.execute("""
        CREATE TABLE ads AS
        SELECT AdID::BIGINT AS ad, CategoryID AS category, LocationID AS location,
            CASE WHEN Price::DOUBLE > 0 THEN Price::DOUBLE END AS price
        FROM raw;
        DROP TABLE raw
    """)
    path = needed_csv(source, "Category.tsv")
    load_csv(connection, "raw", path, ("CategoryID", "ParentCategoryID"), _FORM)
    check_lines(connection, "raw", path, _id_rules("CategoryID"))
    check_unique_lines(connection, "raw", path, "CategoryID")
    connection.execute("""
        CREATE TABLE parents AS
        SELECT CategoryID AS category, ParentCategoryID AS parent FROM raw;
        DROP TABLE raw
    """)


def load_users(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make table `users`."""
    path = needed_csv(source, "UserInfo.tsv")
    columns = ("UserID", "UserAgentFamilyID", "UserAgentOSID", "UserDeviceID")
    load_csv(connection, "raw", path, columns, _FORM)
    check_lines(connection, "raw", path, _id_rules("UserID"))
    check_unique_lines(connection, "raw", path, "UserID")
    connection.execute("""
        CREATE TABLE users AS
        SELECT UserID::BIGINT AS user_id, UserAgentFamilyID AS agent, UserAgentOSID AS os,
            UserDeviceID AS device
        FROM raw;
        DROP TABLE raw
    """)


def load_visits(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make table `visits` of the users who searched."""
    connection.execute(
        "CREATE TABLE visits (user_id BIGINT, ad BIGINT, action VARCHAR, timestamp BIGINT)"
    )
    for name, moment, action in (
        ("VisitsStream.tsv", "ViewDate", "view"),
        ("PhoneRequestsStream.tsv", "PhoneRequestDate", "phone"),
    ):
        path = needed_csv(source, name)
        load_csv(connection, "raw", path, ("UserID", "AdID", moment), _FORM)
        check_lines(connection, "raw", path, [*_id_rules("UserID", "AdID"), _time_rule(moment)])
        connection.execute(f"""
            INSERT INTO visits
            SELECT UserID::BIGINT, AdID::BIGINT, '{action}', {_time(moment)}
            FROM raw SEMI JOIN searches ON user_id = UserID::BIGINT;
            DROP TABLE raw
        """)


def _id_rules(*columns: str) -> Sequence[Rule]:
    return [
        Rule(f"NOT {matches(name, '[0-9]{1,18}')}", f"{name} is no number from 0", name)
        for name in columns
    ]


def _time_rule(column: str) -> Rule:
    return Rule(
        f"try_strptime({column}, {_TIMES}) IS NULL",
        f"{column} is no moment such as 2015-05-01 09:05:58.0",
        column,
    )


def _time(column: str) -> str:
    return f"epoch_ms(strptime({column}, {_TIMES}))"
