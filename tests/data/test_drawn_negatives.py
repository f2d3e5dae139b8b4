"""Negatives of a log that says only what users did: who can be one, how often, and by which key."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.data.schema import load_schema
from tests.data.mapped_logs import START, prepare, write_csv
from tests.data.trivago_events import Rows

ACTIONS = """
name = "shop"
source = "made at random"
category = "category_id"
tables.log = {files = ["log.csv"]}
sampling = {num_negatives = 3, seed = 7}
split.test_share = 0.3

[log]
table = "log"
rows = "action"
user = "user"
item = "item"
time = {column = "time", unit = "s"}
label = {column = "action", one_of = ["view"]}

[features.category_id]
role = "item"
level = "candidate"
kind = "id"
column = "category"

[behaviours.all]
table = "log"
user = "user"
item = ["item"]
action = "action"
time = {column = "time", unit = "s"}
"""


def actions(count: int = 400) -> Rows:
    """Views, mostly of popular items, and some purchases; items appear one after the other."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        item = min(int(rng.geometric(0.15)), 1 + number // 10)
        rows.append(
            {
                "user": f"u{rng.integers(20)}",
                "item": f"i{item}",
                "category": f"c{item % 4}",
                "action": "view" if rng.random() < 0.8 else "buy",
                "time": START + number // 3 * 60,
            }
        )
    return rows


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    folder = tmp_path_factory.mktemp("actions")
    write_csv(folder / "log.csv", actions())
    return folder / "data", prepare(folder, ACTIONS)


def test_each_positive_on_a_known_item_is_a_request_with_negatives_known_before(
    prepared: tuple[Path, Rows],
) -> None:
    dataset, requests = prepared
    views = [row for row in actions() if row["action"] == "view"]
    first = {row["item"]: row["time"] for row in reversed(views)}
    possible = [row for row in views if first[row["item"]] < row["time"]]
    shown = Counter()
    for request in requests:
        time = request["timestamp"] // 1000
        assert all(first[item] < time for item in request["item_id"])
        assert len(set(request["item_id"])) == len(request["item_id"])
        assert request["category_id"] == [f"c{int(item[1:]) % 4}" for item in request["item_id"]]
        assert sum(request["label"]) == 1
        shown[(request["user_id"], request["item_id"][request["label"].index(1)], time)] += 1
    assert shown == Counter((row["user"], row["item"], row["time"]) for row in possible)
    lengths = [len(request["label"]) for request in requests[50:]]
    assert max(lengths) == 4
    assert np.mean(lengths) > 3.9
    schema = load_schema(dataset)
    assert schema.history.num_behaviours == 400
    assert f"3 negatives of each of {len(possible)} positives are drawn" in schema.source


def test_the_place_of_the_positive_says_nothing(prepared: tuple[Path, Rows]) -> None:
    places = Counter(request["label"].index(1) for request in prepared[1][50:])
    count = sum(places.values())
    assert all(abs(places[p] - count / 4) < 4 * (count * 3 / 16) ** 0.5 for p in range(4))


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["popularity", "uniform"])
def test_negatives_follow_the_positives_so_far(tmp_path: Path, weights: str) -> None:
    rows = actions(900)
    write_csv(tmp_path / "log.csv", rows)
    settings = [f"sampling={{num_negatives=1, weights='{weights}', seed=3}}"]
    requests = prepare(tmp_path, ACTIONS, *settings)
    views = [row for row in rows if row["action"] == "view"]
    expected: dict[str, float] = defaultdict(float)
    drawn = Counter()
    for request in requests:
        time = request["timestamp"] // 1000
        positive = request["item_id"][request["label"].index(1)]
        seen = Counter(row["item"] for row in views if row["time"] < time)
        seen = seen if weights == "popularity" else Counter(dict.fromkeys(seen, 1))
        # Drawn until another item than the positive comes; a few draws are enough nearly always.
        others = {item: n for item, n in seen.items() if item != positive}
        for item, n in others.items():
            expected[item] += n / sum(others.values())
        drawn += Counter(item for item in request["item_id"] if item != positive)
    for item, count in expected.items():
        assert abs(drawn[item] - count) < 5 * count**0.5 + 3, (item, drawn[item], count)


@pytest.mark.slow
def test_draws_are_those_of_the_seed(tmp_path: Path, prepared: tuple[Path, Rows]) -> None:
    write_csv(tmp_path / "log.csv", actions())
    assert prepare(tmp_path, ACTIONS) == prepared[1]
    (tmp_path / "data").rename(tmp_path / "first")
    other = prepare(tmp_path, ACTIONS, "sampling.seed=8")
    assert [r["timestamp"] for r in other] == [r["timestamp"] for r in prepared[1]]
    assert other != prepared[1]
    (tmp_path / "data").rename(tmp_path / "second")
    some = prepare(tmp_path, ACTIONS, "sampling.share=0.5")
    assert abs(len(some) - len(other) / 2) < 4 * (len(other) / 4) ** 0.5
