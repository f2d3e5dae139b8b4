"""Candidate lists for baskets, and what had been known of each product before the week.

The log says what was promoted and what was bought, but no list was ever shown. A list is made so
that nothing but the household's taste and what moves all customers can tell its label:

* Only products promoted in the basket's store and week are candidates, bought or not. Bought
  products without a promotion are behaviours, never candidates: otherwise a missing promotion
  would say "bought".
* Those not bought are drawn without replacement in proportion to how often each was bought, by
  anybody anywhere, in the weeks before: otherwise a list would be a few known products among many
  that nobody buys.
* All draws are hashes of (seed, basket, draw), and lists stand in the order of hashes.
"""

import duckdb

from cdp_torchrec.data.prepare.draws import random_number

_DRAWS_PER_PLACE = 4
"""A draw may hit a bought product, or one drawn before."""


def number_requests(
    connection: duckdb.DuckDBPyConnection, *, first_week: int, num_candidates: int, seed: int
) -> None:
    """Make tables `requests` (number, basket, ...) and `candidates` (number, product, label, ...).

    A basket with promoted products is a request. More than half a list of bought ones are cut by
    a draw.

    Args:
        connection: holds the tables of `completejourney_log`.
        first_week: first week with requests.
        num_candidates: length of a list; less only where a store promotes too little.
        seed: of the draws.
    """
    connection.execute(f"""
        CREATE TABLE bought AS
        SELECT basket, product, {random_number("basket", "'bought'", "product", seed=seed)} AS draw
        FROM purchases JOIN promotions USING (product, store, week) WHERE week >= {first_week};
        CREATE TABLE requests AS
        SELECT row_number() OVER (ORDER BY timestamp, basket) - 1 AS number, *
        FROM (
            SELECT DISTINCT basket, household, store, week, timestamp
            FROM bought JOIN purchases USING (basket)
        ) ORDER BY number
    """)
    _weigh_promotions(connection)
    draw = random_number("basket", "'draw'", "draw", seed=seed)
    connection.execute(f"""
        CREATE TABLE positives AS
        SELECT number, product, 1 AS label FROM bought JOIN requests USING (basket)
        QUALIFY row_number() OVER (PARTITION BY number ORDER BY draw, product)
            <= {max(1, num_candidates // 2)};
        CREATE TABLE negatives AS
        WITH draws AS (
            SELECT number, basket, store, week, draw,
                floor({draw} * total)::BIGINT AS place
            FROM requests JOIN (
                SELECT store, week, max(first + weight) AS total FROM weights GROUP BY ALL
            ) USING (store, week)
            CROSS JOIN generate_series(1, {_DRAWS_PER_PLACE * num_candidates}) AS g(draw)
        ), hits AS (
            SELECT number, basket, product, min(draw) AS draw
            FROM draws ASOF JOIN weights
            ON weights.store = draws.store AND weights.week = draws.week
                AND weights.first <= draws.place
            GROUP BY ALL
        )
        SELECT number, product, 0 AS label
        FROM hits ANTI JOIN bought ON bought.basket = hits.basket AND bought.product = hits.product
        JOIN (SELECT number, count(*) AS taken FROM positives GROUP BY number) USING (number)
        QUALIFY row_number() OVER (PARTITION BY number ORDER BY draw) <= {num_candidates} - taken;
        CREATE TABLE candidates AS
        SELECT number, product, label,
            {random_number("basket", "'place'", "product", seed=seed)} AS place
        FROM (FROM positives UNION ALL FROM negatives) JOIN requests USING (number)
        ORDER BY number, place, product;
        DROP TABLE bought; DROP TABLE positives; DROP TABLE negatives; DROP TABLE weights
    """)


def follow_prices(connection: duckdb.DuckDBPyConnection) -> None:
    """Make table `tiers` (product, week, price_tier): known when the week begins.

    The tier, 1 to 5, is the fifth of its category in which the mean regular unit price of all
    earlier weeks lies; products not bought before have none.
    """
    connection.execute("""
        CREATE TABLE tiers AS
        WITH sold AS (
            SELECT product, week, sum(cents) OVER so_far AS cents, sum(quantity) OVER so_far AS n
            FROM (
                SELECT product, week, sum(cents) AS cents, sum(quantity) AS quantity
                FROM purchases GROUP BY ALL
            )
            WINDOW so_far AS (PARTITION BY product ORDER BY week)
        ), weekly AS (
            SELECT p.product, w.week, category, cents::DOUBLE / n AS price
            FROM (SELECT DISTINCT week FROM requests) w CROSS JOIN products p
            ASOF JOIN sold ON sold.product = p.product AND sold.week < w.week
        )
        SELECT product, week, ceil(5 * cume_dist() OVER (
            PARTITION BY week, category ORDER BY price
        ))::INTEGER AS price_tier
        FROM weekly
    """)


def _weigh_promotions(connection: duckdb.DuckDBPyConnection) -> None:
    """Make table `weights`: each promoted product owns [first, first + weight) of its store-week.

    The weight is 1 + the baskets of earlier weeks with the product.
    """
    connection.execute("""
        CREATE TABLE weights AS
        WITH sold AS (
            SELECT product, week, sum(count(*)) OVER (PARTITION BY product ORDER BY week) AS n
            FROM purchases GROUP BY product, week
        ), weighed AS (
            SELECT p.product, p.store, p.week, 1 + coalesce(n, 0)::BIGINT AS weight
            FROM promotions p SEMI JOIN requests USING (store, week)
            ASOF LEFT JOIN sold ON sold.product = p.product AND sold.week < p.week
        )
        SELECT product, store, week, weight, (sum(weight) OVER (
            PARTITION BY store, week ORDER BY product
        ))::BIGINT - weight AS first FROM weighed
    """)
