"""A draft takes ids for ids, whatever else they look like."""

import tomllib
from pathlib import Path

import pytest

from cdp_torchrec.data.prepare.mapped.draft import draft_mapping
from cdp_torchrec.data.schema import DatasetError, load_schema
from tests.data.mapped_logs import START, write_csv
from tests.data.test_draft import drafted_text, impressions, parquet_log, prepared


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


def test_the_number_of_an_action_is_no_user_and_no_item(tmp_path: Path) -> None:
    """Tables of databases number their rows, and so are ids of users and items often."""
    log = "\n".join(
        f"{row // 4 % 30 + 1},{row % 37 + 1},{START + 500 * (row // 4)},r{row // 4},{row % 2}"
        for row in range(400)
    )
    (tmp_path / "log.csv").write_text(f"user_id,item_id,ts,request_id,clicked\n{log}\n")
    actions = "\n".join(
        f"{row + 1},{row % 30 + 1},{row % 37 + 1},{START + 100 * row},{('view', 'buy')[row % 2]}"
        for row in range(500)
    )
    (tmp_path / "events.csv").write_text(f"id,user_id,product_id,created_at,event\n{actions}\n")
    files = [tmp_path / "log.csv", tmp_path / "events.csv"]
    found = tomllib.loads(draft_mapping(files, mapping="m.toml"))
    assert found["behaviours"]["events"]["item"] == ["product_id"]
    assert "features" not in found
    data = prepared(tmp_path, *files)
    assert load_schema(data).history.num_behaviours == 500 + 200


def test_a_table_of_items_with_owners_and_times_is_told_by_its_own_ids(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(impressions(clicked=["0", "0", "1"]))
    items = [f"i{n},u{n % 5},{START - 100 * n},{n / 7:.2f}" for n in range(37)]
    (tmp_path / "items.csv").write_text("\n".join(["item,seller_user,listed_at,price", *items]))
    text = draft_mapping([tmp_path / "log.csv", tmp_path / "items.csv"], mapping="m.toml")
    assert tomllib.loads(text)["tables"]["items"]["key"] == "item"
    assert [*tomllib.loads(text)["behaviours"]] == ["click"]


def test_the_index_of_a_data_frame_in_parquet_is_not_read(tmp_path: Path) -> None:
    file = parquet_log(tmp_path, __index_level_0__=[3 * row for row in range(400)])
    assert "# column 6 without a name, which is not read.\n" in draft_mapping([file], mapping="m")
    prepared(tmp_path, file)


@pytest.mark.parametrize("name", ["cat\u00e9gorie", "Kategorie", "cats", "cat_ids"])
def test_a_category_is_known_by_its_name_in_other_words(tmp_path: Path, name: str) -> None:
    found = tomllib.loads(drafted_text(tmp_path, clicked=["0", "0", "1"], **{name: [*"abcde"]}))
    assert found["category"] == "category_id"
    assert found["features"]["category_id"]["column"] == name


def test_a_draft_without_a_gate_says_so(tmp_path: Path) -> None:
    text = drafted_text(tmp_path, clicked=["0", "0", "1"], kind=[*"abcde"])
    assert "# READ THIS: no feature looks like the category of an item. Name one" in text
    assert "category" not in tomllib.loads(text)


def test_paths_from_one_root_are_categories_as_they_stand(tmp_path: Path) -> None:
    paths = ["Home|Bed", "Home|Bath|Soap", "Home|Garden"]
    found = tomllib.loads(drafted_text(tmp_path, clicked=["0", "1"], category=paths))["features"]
    assert "separator" not in found["category_id"]


@pytest.mark.parametrize("written", ["[{0}, {1}]", "['{0}', '{1}']", "{{{0},{1}}}", "[{0} {1}]"])
def test_lists_that_are_written_in_brackets_are_no_ids(tmp_path: Path, written: str) -> None:
    """So do data frames and databases write lists to CSV."""
    lists = [f'"{written.format(n, n + 1)}"' for n in range(11)]
    text = drafted_text(tmp_path, clicked=["0", "1"], tag_ids=lists)
    assert "# 'tag_ids' is left out: its lists are written in brackets: write them as" in text
    rows = [f'u{n % 9},{START + 60 * n},{lists[n % 11]},"[{n}]"' for n in range(99)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,ts,items,clicked_items", *rows]) + "\n")
    with pytest.raises(DatasetError, match=r"log.csv: 'items' has .*: its lists are written in br"):
        draft_mapping([tmp_path / "log.csv"], mapping="m.toml")


def test_ids_in_braces_are_ids(tmp_path: Path) -> None:
    found = tomllib.loads(drafted_text(tmp_path, clicked=["0", "1"], shop=["{3F}", "{4A}", "{5B}"]))
    assert found["features"]["shop"]["kind"] == "id"


def test_numbers_with_commas_between_thousands_are_no_lists(tmp_path: Path) -> None:
    prices = [f'"{n * 37 + 0.5:,.2f}"' for n in range(199)]
    text = drafted_text(tmp_path, clicked=["0", "0", "1"], price=prices)
    assert "# 'price' is left out: its numbers have commas between thousands" in text
    assert "features" not in tomllib.loads(text)


def test_a_session_in_the_place_of_a_request_is_said(tmp_path: Path) -> None:
    for seconds, is_said in ((5, False), (900, True)):
        lines = ["user_id,item_id,ts,session_id,clicked"]
        for row in range(400):
            session, place = divmod(row, 4)
            time = START + 5000 * session + seconds * place
            lines.append(f"u{session % 30},i{row % 37},{time},s{session},{place == 1:d}")
        file = tmp_path / f"log{seconds}.csv"
        file.write_text("\n".join(lines) + "\n")
        text = draft_mapping([file], mapping="m.toml")
        assert 'request = ["session_id"] # 4.0 rows each, of one user' in text
        assert ("READ THIS: half of them last 2700 s or longer" in text) == is_said
