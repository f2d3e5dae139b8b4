"""A draft takes ids for ids, whatever else they look like."""

import tomllib
from pathlib import Path

import pytest

from cdp_torchrec.data.prepare.mapped.draft import draft_mapping
from tests.data.mapped_logs import START, write_csv


@pytest.mark.parametrize("first", [1_200_000_000, 640_000_000_000])
@pytest.mark.parametrize("name", ["item_id", "sku"])
def test_ids_with_as_many_digits_as_moments_are_ids(tmp_path: Path, name: str, first: int) -> None:
    """Seconds and milliseconds are numbers of such sizes, and so are the items of large shops."""
    rows = [
        {
            "user_id": n % 20,
            name: first + n * 37 % 60,
            "brand_id": first + n * 37 % 60 % 7,
            "behavior": ("pv", "buy")[n % 3 == 0],
            "occurred": START + 600 * n,
        }
        for n in range(400)
    ]
    file = write_csv(tmp_path / "log.csv", rows)
    found = tomllib.loads(draft_mapping([file], mapping="mapping.toml"))
    assert found["log"]["item"] == name
    assert found["log"]["time"]["column"] == "occurred"
    assert found["features"]["brand_id"]["kind"] == "id"


@pytest.mark.parametrize("name", ["item_{}", "sku {}", "i{}_{}"])
@pytest.mark.parametrize("rows", ["impression", "action"])
def test_an_item_whose_name_has_parts_is_no_list(tmp_path: Path, name: str, rows: str) -> None:
    numbers = [n * 7 % 30 for n in range(400)]
    log = [
        {"user_id": f"user_{n // 4 % 9}", "item_id": name.format(number, number % 3)}
        | {"ts": START + 600 * (n // 4)}
        | ({"clicked": n % 3 // 2} if rows == "impression" else {"event": ("view", "buy")[n % 2]})
        for n, number in enumerate(numbers)
    ]
    file = write_csv(tmp_path / "log.csv", log)
    found = tomllib.loads(draft_mapping([file], mapping="mapping.toml"))["log"]
    assert (found["rows"], found["item"]) == (rows, "item_id")
    assert "separator" not in found


@pytest.mark.parametrize(("separator", "lengths"), [(" ", (4,)), ("_", (3, 4)), ("|", (4,))])
def test_items_side_by_side_are_a_list(
    tmp_path: Path, separator: str, lengths: tuple[int, ...]
) -> None:
    log = []
    for n in range(100):
        items = [f"i{(n * 7 + place * 11) % 30}" for place in range(lengths[n % len(lengths)])]
        row = {"user_id": f"u{n % 9}", "item_ids": separator.join(items), "ts": START + 600 * n}
        log.append(row | {"clicked": items[n % 3]})
    file = write_csv(tmp_path / "log.csv", log)
    found = tomllib.loads(draft_mapping([file], mapping="mapping.toml"))["log"]
    assert (found["rows"], found["separator"]) == ("request", separator)


def test_an_underscore_in_a_name_separates_nothing(tmp_path: Path) -> None:
    cities, sizes = ("new_york", "los_angeles", "san_jose"), ("1_2", "2_3_4", "3")
    log = [
        {"request_id": n // 4, "user_id": n // 4 % 9, "item_id": n * 7 % 30}
        | {"ts": START + 600 * (n // 4), "clicked": n % 3 // 2, "trace": f"tr_{n // 4}"}
        | {"city": cities[n // 4 % 3], "sizes": sizes[n // 4 % 3]}
        for n in range(400)
    ]
    text = draft_mapping([write_csv(tmp_path / "log.csv", log)], mapping="mapping.toml")
    features = tomllib.loads(text)["features"]
    assert features["city"]["kind"] == "id"
    assert (features["sizes"]["kind"], features["sizes"]["separator"]) == ("ids", "_")
    assert "'trace' is left out: each request has its own" in text
