"""A draft says what it leaves out, what it doubts, and why."""

import bz2
import tomllib
import tracemalloc
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands.prepare_data import main
from cdp_torchrec.data.prepare.mapped.draft import draft_mapping
from cdp_torchrec.data.prepare.mapped.sniffed_columns import SniffedColumn
from cdp_torchrec.data.prepare.mapped.sniffed_files import sniff
from cdp_torchrec.data.schema import DatasetError
from tests.data.mapped_logs import START
from tests.data.test_draft import drafted_text, impressions, parquet_log, prepared
from tests.data.trivago_events import Rows
from tests.docs.logs import write_shop


def test_columns_that_no_mapping_reads_are_named(tmp_path: Path) -> None:
    lists, raw = [[[1]]] * 400, [b"\xff"] * 400
    file = parquet_log(tmp_path, lists=lists, raw=raw)
    text = draft_mapping([file], mapping="m.toml")
    assert "# 'lists' is of type list<item: list<item: int64>>, which is not read.\n" in text
    assert "# 'raw' is of type binary, which is not read.\n" in text
    prepared(tmp_path, file)


@pytest.mark.parametrize("first", ["", '""'])
def test_numbers_of_rows_that_a_data_frame_is_written_with_are_not_read(
    first: str, tmp_path: Path
) -> None:
    file = tmp_path / "log.csv"
    header, *rows = impressions(clicked=["0", "1"]).splitlines()
    file.write_text("\n".join([f"{first},{header}", *(f"{n},{r}" for n, r in enumerate(rows))]))
    assert "# column 1 without a name, which is not read.\n" in draft_mapping([file], mapping="m")
    prepared(tmp_path, file)
    assert "features" not in tomllib.loads((tmp_path / "mapping.toml").read_text())


def test_a_column_that_numbers_the_rows_is_no_feature(tmp_path: Path) -> None:
    number = list(range(7, 407))
    other = [*number[:-1], 7]
    text = draft_mapping([parquet_log(tmp_path, nr=number, other=other)], mapping="m")
    assert "# 'nr' is left out: it numbers the rows of the file\n" in text
    assert "other" in tomllib.loads(text)["features"]
    assert "nr" not in tomllib.loads(text)["features"]


def test_a_table_of_items_may_number_its_rows(tmp_path: Path) -> None:
    items = [f"i{n},{n},{n / 7:.2f}" for n in range(37)]
    (tmp_path / "items.csv").write_text("\n".join(["item_id,Unnamed: 0,price", *items]) + "\n")
    (tmp_path / "log.csv").write_text(impressions(clicked=["0", "0", "1"]))
    text = draft_mapping([tmp_path / "log.csv", tmp_path / "items.csv"], mapping="m")
    assert "# 'Unnamed: 0' is left out: it numbers the rows of the file\n" in text
    assert [*tomllib.loads(text)["features"]] == ["price"]


def test_a_column_of_parquet_without_a_name_is_not_read(tmp_path: Path) -> None:
    file = parquet_log(tmp_path, **{"": list(range(400))})
    assert "# column 6 without a name, which is not read.\n" in draft_mapping([file], mapping="m")
    prepared(tmp_path, file)


def test_columns_that_no_mapping_reads_are_named_where_they_would_be_the_item(
    tmp_path: Path,
) -> None:
    file = parquet_log(tmp_path, item_id=[f"i{row % 37}".encode() for row in range(400)])
    with pytest.raises(DatasetError, match=r"\(not read: 'item_id' is of type binary\)"):
        draft_mapping([file], mapping="m.toml")


def test_decimals_are_ids_where_they_have_no_places(tmp_path: Path) -> None:
    """So do warehouses write integers."""
    numbers = [Decimal(row % 37) for row in range(400)]
    brands = [Decimal(row % 9) / 2 for row in range(400)]
    ids, halves = pa.decimal128(38, 0), pa.decimal128(10, 1)
    file = parquet_log(tmp_path, item_id=pa.array(numbers, ids), brand=pa.array(brands, halves))
    prepared(tmp_path, file)
    raw = pq.read_table(tmp_path / "data" / "vocabulary" / "item.parquet")["raw"]
    assert {*raw.to_pylist()} == {str(row) for row in range(37)}
    file = parquet_log(tmp_path, item_id=pa.array(numbers, halves))
    with pytest.raises(DatasetError, match=r"'item_id' has decimal numbers, which are no ids"):
        draft_mapping([file], mapping="m.toml")


@pytest.mark.parametrize(
    ("name", "pack", "said"),
    [
        ("log.csv.bz2", bz2.compress, "bzip2, and only .gz and .xz are read"),
        ("log.csv.zst", lambda raw: bytes(pa.compress(raw, "zstd")), "zstd, and only .gz"),
        ("log.csv", lambda raw: bytes(pa.compress(raw, "gzip")), "gzip, but its name does not"),
    ],
)
def test_a_file_that_is_compressed_in_another_way_is_told_so(
    name: str, pack: Callable[[bytes], bytes], said: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(pack(impressions(clicked=["0", "1"]).encode()))
    with pytest.raises(DatasetError, match=f"{name}: the file is compressed by {said}"):
        draft_mapping([file], mapping="m.toml")


def test_a_zip_archive_is_told_to_be_one(tmp_path: Path) -> None:
    file = tmp_path / "log.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("log.csv", impressions(clicked=["0", "1"]))
    with pytest.raises(DatasetError, match=r"log.zip: the file is compressed by zip, and only"):
        draft_mapping([file], mapping="m.toml")


def test_a_file_that_is_not_used_is_named_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shop(tmp_path)
    items = tmp_path / "items.csv"
    lines = items.read_text().splitlines()
    items.write_text("\n".join([*lines, lines[3]]) + "\n")
    (tmp_path / "shops.csv").write_text("shop,town\n1,Bonn\n2,Ulm\n3,Bonn\n")
    files = [tmp_path / f"{name}.csv" for name in ("impressions", "items", "shops")]
    prepared(tmp_path, *files)
    behind = "; behaviours need a user, an item and a time"
    twice = f"each item needs one row, but 'id' has 'i2' in line 4 and in line 32{behind}"
    unknown = f"no column has the items or users of the log{behind}"
    told = capsys.readouterr().out
    for said in (f"Not used: {items}: {twice}\n", f"Not used: {files[2]}: {unknown}\n"):
        assert said in told
        assert f"# {said}" in (tmp_path / "mapping.toml").read_text()


def test_a_key_that_is_empty_in_a_row_is_the_reason(tmp_path: Path) -> None:
    write_shop(tmp_path)
    (tmp_path / "items.csv").write_text("id,price\ni1,1.5\n,2.5\ni2,3.5\n")
    text = draft_mapping([tmp_path / f"{n}.csv" for n in ("impressions", "items")], mapping="m")
    assert "items.csv: each row needs its item, but 'id' is empty in line 3; behaviours" in text


@pytest.mark.parametrize("tables", [("log", "views"), ("log", "views", "items")])
def test_behaviours_without_the_category_that_only_the_log_has_are_not_used(
    tables: tuple[str, ...], tmp_path: Path
) -> None:
    write_shop(tmp_path)
    rows = impressions(clicked=["0", "0", "1"], category=["hats", "shoes"])
    (tmp_path / "log.csv").write_text(rows)
    items = [f"i{item},{('felt', 'straw')[item % 2]}\n" for item in range(37)]
    (tmp_path / "items.csv").write_text("".join(["item_id,genre\n", *items]))
    files = [tmp_path / f"{name}.csv" for name in tables]
    said = f"# Not used: {files[1]}: no column has the category, which only the log has\n"
    assert said in draft_mapping(files, mapping="m.toml")
    prepared(tmp_path, *files)


def test_lists_of_numbers_of_other_lengths_are_left_out_with_the_row(tmp_path: Path) -> None:
    rows = [
        {
            "user_id": f"u{n % 7}",
            "time": START + 60 * n,
            "items": [f"i{n % 5}", f"i{n % 5 + 1}"],
            "clicked": [n % 2, 0],
            "scores": [0.5 + n, 1.5, 2.5][: 2 + (n == 3)],
        }
        for n in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    text = draft_mapping([tmp_path / "log.parquet"], mapping="m.toml")
    assert (
        "# 'scores' is left out: lists of numbers that are not one for each candidate: row 3 has "
        "3, and 2 in 'items'\n"
    ) in text


@pytest.mark.parametrize(("column", "value"), [("user_id", "\nu3,"), ("ts", f",{START + 1500},")])
def test_an_empty_user_or_time_is_pointed_at_with_the_rule_that_leaves_it_out(
    column: str, value: str, tmp_path: Path
) -> None:
    file, rows = tmp_path / "log.csv", impressions(clicked=["0", "0", "1"])
    file.write_text(rows.replace(value, value[0] + ","))
    rule = f'only = {{column = "{column}", filled = true}}'
    text = draft_mapping([file], mapping="m.toml")
    assert f"; EMPTY in {rows.count(value)} of 400 rows, refused without {rule}\n" in text
    ran = text.replace('rows = "impression"', f'{rule}\nrows = "impression"')
    (tmp_path / "m.toml").write_text(ran)
    folders = ["--input", str(tmp_path), "--output", str(tmp_path / "data")]
    main(["generic", str(tmp_path / "m.toml"), *folders])


def test_a_place_in_the_list_is_said_to_be_known_only_after_ranking(tmp_path: Path) -> None:
    text = drafted_text(tmp_path, clicked=["0", "0", "1"], position=["1", "2", "3", "4"])
    said = (
        "known only after ranking: leave it out with data.exclude_features, or score with a "
        "constant.\n[features.position] "
    )
    assert said in text
    assert text.count("known only after ranking") == 1


def test_lines_end_as_the_preparation_takes_them(tmp_path: Path) -> None:
    titles = [f"a{character}b" for character in "\x0b\x0c\x1c\x85\u2028"]
    text = impressions(title=titles)
    (tmp_path / "log.csv").write_bytes(text.encode().replace(b"\n", b"\r"))
    file = sniff(tmp_path / "log.csv")
    assert (file.num_rows, file.columns["title"].num_distinct) == (400, 5)
    (tmp_path / "log.csv").write_text(text.replace("title", '"title\nof it"'))
    assert "title\nof it" in sniff(tmp_path / "log.csv").columns
    (tmp_path / "log.csv").write_text("\n\n")
    with pytest.raises(DatasetError, match=r"log.csv: no table: its first line is empty or"):
        sniff(tmp_path / "log.csv")


def test_a_long_value_takes_its_own_memory_only(tmp_path: Path) -> None:
    text = impressions(clicked=["0", "0", "1"], title=["a", "b", "c"]).removesuffix("\n")
    (tmp_path / "log.csv").write_text(f"{text}{'x' * 200_000}\n")
    tracemalloc.start()
    try:
        assert "[features.title]" in draft_mapping([tmp_path / "log.csv"], mapping="m.toml")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_columns_are_found_among_thousands_without_a_look_at_their_values() -> None:
    values = ["1"] * 400
    column, other = SniffedColumn("x", values), SniffedColumn("x", values)
    assert column in [other, column]
    assert column not in [other]


@pytest.mark.parametrize("file", ["log", "items"])
def test_of_a_list_of_a_candidate_the_first_is_read_and_the_draft_says_so(
    file: str, tmp_path: Path
) -> None:
    rows = [line.split(",") for line in impressions(clicked=["0", "0", "1"]).splitlines()]
    log: Rows = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    for row in log:
        row["ts"] = int(row["ts"])
    items: Rows = [{"item_id": f"i{item}"} for item in range(37)]
    for row in {"log": log, "items": items}[file]:
        item = int(row["item_id"][1:])
        row["genres"] = [f"g{item % 5}", f"g{item % 3}"][: item % 3]
    files = [tmp_path / "log.parquet", tmp_path / "items.parquet"][: 1 + (file == "items")]
    for path, table in zip(files, (log, items), strict=False):
        pq.write_table(pa.Table.from_pylist(table), path)
    assert "# the first of several: bags are of level request only" in draft_mapping(
        files, mapping="m.toml"
    )
    vocabulary = prepared(tmp_path, *files) / "vocabulary" / "category.parquet"
    assert set(pq.read_table(vocabulary)["raw"].to_pylist()) == {f"g{n}" for n in range(5)}


@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_moments_that_python_cannot_hold_are_drafted(tmp_path: Path, zone: str | None) -> None:
    file = parquet_log(tmp_path)
    table = pq.read_table(file)
    place = table.schema.get_field_index("ts")
    nanoseconds = [10**9 * (START + 500 * (row // 4)) + 1 for row in range(400)]
    ts = pa.array(nanoseconds, pa.timestamp("ns", zone))
    far = pa.array([10**12] * 400, pa.timestamp("s"))
    pq.write_table(table.set_column(place, "ts", ts).append_column("far", far), file)
    text = draft_mapping([file], mapping="m.toml")
    assert "[log.time] # by its name and its values: 2025-06-01 00:00:00 UTC" in text
    assert 'unit = "timestamp"' in text


def test_a_draft_that_could_not_be_written_is_not_begun(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"file/m.toml: .*file is not a writable directory"):
        main(["draft", "nowhere.csv", "--output", str(tmp_path / "file" / "m.toml")])
