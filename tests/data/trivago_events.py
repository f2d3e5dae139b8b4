"""RecSys Challenge 2019 logs written by hand."""

import csv
import gzip
import lzma
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cdp_torchrec.data.prepare.logs.trivago import prepare_trivago
from cdp_torchrec.data.prepare.logs.trivago_log import COLUMNS
from cdp_torchrec.data.schema import load_schema

DAY = 24 * 3600
START = 1541548800  # 2018-11-07 00:00 UTC, a Wednesday
Rows = list[dict[str, Any]]
OPEN = {"": open, ".gz": gzip.open, ".xz": lzma.open}


def event(
    second: int, step: int, action: str, reference: str = "", **values: Any
) -> dict[str, Any]:
    """One line of the log; `second` counts from the first midnight."""
    return {
        "user_id": "ann",
        "session_id": "s1",
        "timestamp": START + second,
        "step": step,
        "action_type": action,
        "reference": reference,
        "platform": "DE",
        "city": "Bonn, Germany",
        "device": "mobile",
    } | values


def clickout(second: int, step: int, item: str, impressions: str, **values: Any) -> dict[str, Any]:
    prices = "|".join(str(10 * n) for n in range(1, impressions.count("|") + 2))
    listed = {"impressions": impressions, "prices": prices}
    return event(second, step, "clickout item", item, **(listed | values))


def next_day() -> dict[str, Any]:
    """A request of another user on the last day, so that there is a test split."""
    values = {"user_id": "zoe", "session_id": "z", "city": "Rome, Italy"}
    return clickout(DAY, 1, "1", "1|2|9", **values)


def write_log(directory: Path, events: Rows, name: str = "train.csv") -> Path:
    directory.mkdir(exist_ok=True)
    with OPEN[Path(name).suffix.replace(".csv", "")](directory / name, "wt", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(events)
    return directory


def prepare(directory: Path, events: Rows, **options: Any) -> Rows:
    """Requests of the dataset made from these events, in order, ids decoded."""
    output = directory / "data"
    prepare_trivago(write_log(directory / "log", events), output, **options)
    return decoded(output)


def decoded(dataset: Path) -> Rows:
    features = load_schema(dataset).features
    raw = {
        path.stem: [None, *pq.read_table(path)["raw"].to_pylist()]
        for path in (dataset / "vocabulary").glob("*.parquet")
    }
    rows = [r for split in ("train", "test") for r in pq.read_table(dataset / split).to_pylist()]
    for row in rows:
        for f in features:
            if f.entity:
                cell, names = row[f.name], raw[f.entity]
                row[f.name] = [names[c] for c in cell] if isinstance(cell, list) else names[cell]
    return rows
