"""Small logs in the forms that the pages ask for."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data import completejourney_tables, ebnerd_log, mapped_logs, trivago_events
from tests.data.trivago_events import DAY, Rows, clickout, event


def write_staging(folder: Path) -> None:
    """Two weeks of a small click log in the form that the front page asks for."""
    rng = np.random.default_rng(0)
    count, candidates = 200, 5
    start, day = 1_748_649_600_000 - 10 * 86_400_000, 86_400_000
    items = rng.integers(0, 30, (count, candidates))
    requests = {
        "request_id": [f"r{n}" for n in range(count)],
        "user_id": [f"u{n}" for n in rng.integers(0, 20, count)],
        "timestamp": np.sort(start + rng.integers(0, 14 * day, count)),
        "query_id": [f"q{n}" for n in rng.integers(0, 5, count)],
        "hour": [str(n) for n in rng.integers(0, 24, count)],
        "item_id": [[f"i{n}" for n in row] for row in items],
        "category_id": [[f"c{n % 3}" for n in row] for row in items],
        "log_price": [[float(n) for n in row] for row in items],
        "label": [[int(n) for n in row] for row in rng.integers(0, 2, (count, candidates))],
    }
    touched = rng.integers(0, 30, 500)
    behaviours = {
        "user_id": [f"u{n}" for n in rng.integers(0, 20, 500)],
        "item": [f"i{n}" for n in touched],
        "category": [f"c{n % 3}" for n in touched],
        "action": ["click"] * 500,
        "timestamp": start + rng.permutation(14 * day // 1000)[:500] * 1000,
    }
    for name, columns in (("requests", requests), ("behaviours", behaviours)):
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / name / "part-0.parquet")


def write_trivago(folder: Path) -> None:
    """Two days of searches in one city, 10 hotels a list."""
    rng = np.random.default_rng(0)
    events = []
    for session in range(300):
        second = int(rng.integers(0, 2 * DAY - 100))
        who = {"user_id": f"u{session % 40}", "session_id": f"s{session}"}
        listed = rng.permutation(40)[:10]
        events.append(event(second, 1, "interaction item image", str(listed[3]), **who))
        impressions = "|".join(map(str, listed))
        clicked = str(listed[int(rng.integers(0, 10))])
        events.append(clickout(second + 30, 2, clicked, impressions, **who))
    events.sort(key=lambda row: row["timestamp"])
    folder.mkdir(parents=True)
    trivago_events.write_log(folder, events)


def write_ebnerd(folder: Path) -> None:
    """Two weeks of a front page."""
    listed = [ebnerd_log.request(hour * 3600, [5, 6, 7], [5]) for hour in range(20)]
    folder.mkdir(parents=True)
    ebnerd_log.write_log(folder, [*listed, ebnerd_log.next_week()])


def write_completejourney(file: Path) -> None:
    """A wheel with a basket a day of each of three households, until the last week of the year."""
    day, week = completejourney_tables.DAY, completejourney_tables.WEEK
    rng = np.random.default_rng(0)
    transactions, promotions = [], []
    for visit in range(20 * 7):
        second = 30 * week + visit * 3 * day // 2
        products = rng.permutation(20)[:4].tolist()
        who = {"household_id": visit % 3}
        transactions += completejourney_tables.bought(visit, second, *products, **who)
    for number in range(31, 61):
        promotions += completejourney_tables.promoted(number, *rng.permutation(20)[:12].tolist())
    folder = file.with_suffix("")
    completejourney_tables.write_tables(folder, transactions, promotions)
    completejourney_tables.write_wheel(file, folder)


def write_shop(folder: Path, pages: range = range(300)) -> None:
    """Days of a shop of hats and shoes: impressions, items and views of detail pages.

    Args:
        folder: to write into.
        pages: that were shown, 30 a day.
    """
    rng = np.random.default_rng(pages.start)
    start, day = 1_748_736_000, 86_400
    impressions, views = [], []
    for page in pages:
        second, user = start + page * day // 30, f"u{rng.integers(20)}"
        for item in rng.permutation(30)[:5]:
            row = {"page_id": page, "user_id": user, "time": second, "item_id": f"i{item}"}
            impressions.append(row | {"client": "app", "clicked": int(rng.random() < 0.2)})
        seen = {"user": user, "item": f"i{rng.integers(30)}", "seconds": int(rng.integers(60))}
        when = datetime.fromtimestamp(second - 900, timezone(timedelta(hours=2)))
        views.append(seen | {"when": f"{when:%Y-%m-%d %H:%M}"})
    mapped_logs.write_csv(folder / "impressions.csv", impressions)
    mapped_logs.write_csv(folder / "items.csv", _shop_items())
    mapped_logs.write_csv(folder / "views.csv", views, delimiter=";")


def write_new_rows(folder: Path) -> None:
    """Pages of that shop that are to be ranked: nobody has clicked, or looked at an item."""
    start = 1_748_736_000 + 11 * 86_400
    rows = [
        {"page_id": f"new {page}", "user_id": f"u{page}", "time": start + page}
        | {"item_id": f"i{item}", "client": "app"}
        for page in range(10)
        for item in range(page, page + 5)
    ]
    mapped_logs.write_csv(folder / "impressions.csv", rows)
    mapped_logs.write_csv(folder / "items.csv", _shop_items())


def _shop_items() -> Rows:
    kinds = ("hats", "shoes", "bags")
    return [
        {"id": f"i{n}", "category": kinds[n % 3], "price": n + 0.5, "tags": "new|red"}
        for n in range(30)
    ]
