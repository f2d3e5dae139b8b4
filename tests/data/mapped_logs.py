"""Logs of anybody's making, with their mappings, written by hand or at random."""

import csv
from pathlib import Path
from typing import Any

from cdp_torchrec.config import load_config
from cdp_torchrec.data.prepare.mapped.generic import prepare_generic
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from tests.data.trivago_events import Rows, decoded

START = 1_748_736_000  # 2025-06-01 00:00 UTC, a Sunday
DAY = 24 * 3600

IMPRESSIONS = """
name = "shop"
source = "made by hand"
category = "category_id"

[tables.log]
files = ["log.csv"]

[log]
table = "log"
rows = "impression"
user = "user"
item = "item"
request = ["page"]
time = {column = "time", unit = "s"}
label = {column = "clicks", above = 0}

[features.category_id]
role = "item"
level = "candidate"
kind = "id"
column = "category"

[behaviours.click]

[split]
test_from = "2025-06-02"
"""


def impression(page: int, item: str, **values: Any) -> dict[str, Any]:
    """A row of a log of impressions; ann saw every page, an hour each."""
    return {
        "page": f"p{page}",
        "user": "ann",
        "time": START + 3600 * page,
        "item": item,
        "category": "hats" if item in "abc" else "shoes",
        "clicks": 0,
    } | values


def two_days(**values: Any) -> Rows:
    """Two requests of the first day and one of the second, two items each."""
    return [
        impression(page, item, clicks=int(item == "b")) | values
        for page in (1, 2, 30)
        for item in ("a", "b")
    ]


def write_csv(path: Path, rows: Rows, **options: Any) -> Path:
    """All rows with the columns of the first one, which is the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def mapping_of(folder: Path, text: str, *settings: str) -> MappingConfig:
    """The mapping that a text describes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mapping.toml"
    path.write_text(text)
    return load_config(MappingConfig, [str(path), *settings])


def prepare(folder: Path, text: str, *settings: str) -> Rows:
    """Requests of the dataset made of the files in a folder, in order, ids decoded."""
    mapping = mapping_of(folder / "mapping", text, *settings)
    prepare_generic(mapping, folder, folder / "data")
    return decoded(folder / "data")
