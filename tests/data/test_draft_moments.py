"""What a draft takes for a moment."""

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
