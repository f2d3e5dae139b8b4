"""What the trivago log had shown of a hotel before a moment: its city and how dear it is.

The log names the city of a search, not of a hotel, and no price level. Both are learnt from the
lists and events seen so far, of all users, as a running system would: what is known of a hotel at a
request does not depend on that request, nor on any later one. The log counts seconds, so a second
counts as seen only when it is over.
"""

import duckdb

from cdp_torchrec.data.prepare.logs.trivago_log import IS_ITEM_EVENT, split_list

PRICE_RANK = "cume_dist() OVER (PARTITION BY number ORDER BY price)"
"""SQL: share of the list of request `number` that is not dearer."""
SECOND = "timestamp // 1000"
"""SQL: the second of the log in which an event lies."""


def follow_items(connection: duckdb.DuckDBPyConnection) -> None:
    """Make tables `item_cities` (item, second, city) and `item_tiers` (item, second, price_tier).

    A row says what is known from the end of its second on, until the next row of the item. The city
    is the one under which the hotel was seen most often, of equals the first by name. The tier, 1
    to 5, is the fifth in which its mean price rank lies.

    Args:
        connection: holds the tables `requests` and `events`.
    """
    so_far = "ORDER BY second RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW"
    connection.execute(f"""
        CREATE TABLE item_cities AS
        WITH seen AS (
            SELECT unnest({split_list("impressions")}) AS item, {SECOND} AS second, city
            FROM requests
            UNION ALL
            SELECT reference, {SECOND}, city FROM events WHERE {IS_ITEM_EVENT}
        ), cities AS (
            SELECT city, row_number() OVER (ORDER BY city DESC) AS rank
            FROM (SELECT DISTINCT city FROM seen WHERE city IS NOT NULL)
        ), counted AS (
            -- Of the counts so far, the largest is that of the leader: counts only grow.
            SELECT item, second, rank, count(*) OVER (PARTITION BY item, rank {so_far}) AS n
            FROM seen JOIN cities USING (city)
        ), led AS (
            SELECT DISTINCT item, second,
                max(n * {1 << 32} + rank) OVER (PARTITION BY item {so_far}) % {1 << 32} AS rank
            FROM counted
        ), changes AS (
            SELECT item, second, rank FROM led
            QUALIFY lag(rank) OVER (PARTITION BY item ORDER BY second) IS DISTINCT FROM rank
        )
        SELECT item, second, city FROM changes JOIN cities USING (rank)
    """)
    connection.execute(f"""
        CREATE TABLE item_tiers AS
        WITH listed AS (
            SELECT number, {SECOND} AS second, unnest({split_list("impressions")}) AS item,
                unnest({split_list("prices")})::DOUBLE AS price
            FROM requests
        ), ranked AS (
            SELECT item, second, {PRICE_RANK} AS price_rank FROM listed
        ), tiers AS (
            -- Rounded, so that the order of summation does not matter.
            SELECT DISTINCT item, second,
                ceil(5 * round(avg(price_rank) OVER (PARTITION BY item {so_far}), 9))::INTEGER
                    AS price_tier
            FROM ranked
        )
        SELECT * FROM tiers QUALIFY lag(price_tier) OVER (PARTITION BY item ORDER BY second)
            IS DISTINCT FROM price_tier
    """)
