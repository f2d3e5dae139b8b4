"""A draft puts the files of one table together, and says where it cannot."""

import gzip
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands.prepare_data import main
from cdp_torchrec.data.prepare.mapped.draft import draft_mapping
from cdp_torchrec.data.schema import DatasetError, load_schema
from tests.data.test_draft import impressions, parquet_log, prepared

HEADER, *ROWS = impressions(clicked=["0", "0", "1"], price=["1.5", "2.5", "3"]).splitlines()


def part(folder: Path, number: int, rows: list[str], header: str = HEADER) -> Path:
    """A file of the log with some of its rows."""
    file = folder / f"part-{number}.csv"
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def test_parts_of_which_one_alone_has_cells_that_stand_for_nothing_are_one_table(
    tmp_path: Path,
) -> None:
    nulls = [row.replace(",2.5", ",NULL") for row in ROWS[200:]]
    files = [part(tmp_path, 1, ROWS[:200]), part(tmp_path, 2, nulls)]
    found = tomllib.loads(draft_mapping(files, mapping="m.toml"))
    assert found["tables"] == {
        "part_1": {
            "files": ["part-1.csv", "part-2.csv"],
            "delimiter": ",",
            "missing": ["NULL"],
        }
    }
    splits = load_schema(prepared(tmp_path, *files)).splits
    assert sum(split.impressions for split in splits.values()) == 400


def test_parts_have_their_columns_in_whatever_order(tmp_path: Path) -> None:
    turned = [",".join(reversed(row.split(","))) for row in (HEADER, *ROWS[200:])]
    files = [part(tmp_path, 1, ROWS[:200]), part(tmp_path, 2, turned[1:], turned[0])]
    splits = load_schema(prepared(tmp_path, *files)).splits
    assert sum(split.impressions for split in splits.values()) == 400


def test_parts_that_are_written_in_two_ways_are_an_error(tmp_path: Path) -> None:
    semicolons = [row.replace(",", ";") for row in (HEADER, *ROWS[200:])]
    files = [part(tmp_path, 1, ROWS[:200]), part(tmp_path, 2, semicolons[1:], semicolons[0])]
    with pytest.raises(DatasetError, match=r"part-2.csv: it has the columns of .*delimiter ';'"):
        draft_mapping(files, mapping="m.toml")


def test_a_part_with_other_columns_is_no_table_of_behaviours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was shown would count as done."""
    fewer = [row.rpartition(",")[0] for row in (HEADER, *ROWS[300:])]
    files = [part(tmp_path, 1, ROWS[:300]), part(tmp_path, 2, fewer[1:], fewer[0])]
    main(["draft", *map(str, files), "--output", str(tmp_path / "m.toml")])
    assert f"Not used: {files[1]}: it has ['clicked', 'item_id', " in capsys.readouterr().out
    found = tomllib.loads((tmp_path / "m.toml").read_text())
    assert [*found["tables"]] == ["part_1"]
    assert [*found["behaviours"]] == ["click"]


def test_texts_in_parquet_that_a_program_made_of_nothing_are_missing(tmp_path: Path) -> None:
    """Users without an id, made text by a data frame, would be one user with a long history."""
    users = ["nan" if row // 4 % 9 == 0 else f"u{row // 4 % 30}" for row in range(400)]
    tags = [["a", "None"] if row // 4 % 2 else ["NA"] for row in range(400)]
    file = parquet_log(tmp_path, user_id=users, tags=tags)
    text = draft_mapping([file], mapping="m.toml")
    assert tomllib.loads(text)["tables"]["log"]["missing"] == ["nan", "None"]
    assert "EMPTY in 48 of 400 rows, refused without only = {column" in text
    main(["draft", str(file), "--output", str(tmp_path / "m.toml")])
    folders = ["--input", str(tmp_path), "--output", str(tmp_path / "data")]
    with pytest.raises(DatasetError, match=r"log.parquet: row 0: 'user_id' is empty"):
        main(["generic", str(tmp_path / "m.toml"), *folders])
    main(["generic", str(tmp_path / "m.toml"), *folders, "log.only={column='user_id',filled=true}"])
    schema = load_schema(tmp_path / "data")
    assert sum(split.impressions for split in schema.splits.values()) == 352
    raw = pq.read_table(tmp_path / "data/vocabulary/tags.parquet")["raw"].to_pylist()
    assert sorted(raw) == ["NA", "a"]


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_a_part_may_have_no_rows(tmp_path: Path, end: str) -> None:
    """So have some of the parts that a job writes, and hours without a visitor."""
    if end == "csv":
        files = [part(tmp_path, 1, []), part(tmp_path, 2, ROWS)]
    else:
        files = [tmp_path / "empty.parquet", parquet_log(tmp_path)]
        pq.write_table(pq.read_table(files[1]).slice(0, 0), files[0])
    splits = load_schema(prepared(tmp_path, *files)).splits
    assert sum(split.impressions for split in splits.values()) == 400
    with pytest.raises(DatasetError, match=rf"{files[0].name}: the file has no rows"):
        draft_mapping(files[:1], mapping="m.toml")
    mapping = (tmp_path / "mapping.toml").read_text()
    only = mapping.replace(f', "{files[0].name}"', "").replace(files[1].name, files[0].name)
    (tmp_path / "only.toml").write_text(only)
    folders = ["--input", str(tmp_path), "--output", str(tmp_path / "none")]
    with pytest.raises(DatasetError, match=rf"{files[0].name}: the file has no rows"):
        main(["generic", str(tmp_path / "only.toml"), *folders])


@pytest.mark.parametrize("end", ["csv", "csv.gz"])
def test_a_part_may_have_not_even_a_header(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    """So Hive and Spark write the part of a worker that had no row."""
    first = part(tmp_path, 1, ROWS)
    blank = tmp_path / f"part-0.{end}"
    blank.write_bytes(gzip.compress(b"") if end == "csv.gz" else b"")
    with pytest.raises(DatasetError, match=rf"{blank.name}: the file is empty"):
        draft_mapping([blank], mapping="m.toml")
    mapping = tmp_path / "m.toml"
    main(["draft", str(blank), str(first), "--output", str(mapping)])
    assert f"Not used: {blank}: it is empty" in capsys.readouterr().out
    mapping.write_text(mapping.read_text().replace("part-1.csv", "part-*"))
    folders = ["--input", str(tmp_path), "--output", str(tmp_path / "data")]
    main(["generic", str(mapping), *folders])
    splits = load_schema(tmp_path / "data").splits
    assert sum(split.impressions for split in splits.values()) == 400
    first.unlink()
    with pytest.raises(DatasetError, match=rf"{blank.name}: the file has no rows"):
        main(["generic", str(mapping), *folders[:-1], str(tmp_path / "none")])


@pytest.mark.parametrize("turned", [False, True])
def test_a_part_without_quotation_marks_is_read_as_the_others_are(
    tmp_path: Path, *, turned: bool
) -> None:
    """Inches stand in the titles of some days, and of others not."""
    inches = [f'{row},19" wide' for row in ROWS[:200]]
    plain = [f"{row},wide" for row in ROWS[200:]]
    parts = [plain, inches] if turned else [inches, plain]
    files = [part(tmp_path, n, rows, f"{HEADER},kind") for n, rows in enumerate(parts)]
    found = tomllib.loads(draft_mapping(files, mapping="m.toml"))
    assert found["tables"]["part_0"]["quote"] == "none"
    splits = load_schema(prepared(tmp_path, *files)).splits
    assert sum(split.impressions for split in splits.values()) == 400
    quoted = part(tmp_path, 3, [f'{row},"wide"' for row in ROWS[:9]], f"{HEADER},kind")
    with pytest.raises(DatasetError, match=r"part-3.csv: it has the columns .* written otherwise"):
        draft_mapping([*files, quoted], mapping="m.toml")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_part_in_ascii_is_of_the_encoding_of_the_others(
    tmp_path: Path, encoding: str, *, turned: bool
) -> None:
    """Caf\u00e9s stand in the titles of some days, and of others not."""
    plain = [f"{row},cafe" for row in ROWS[:200]]
    accents = [f"{row},caf\u00e9" for row in ROWS[200:]]
    files = [part(tmp_path, n, plain, f"{HEADER},kind") for n in range(3)]
    lines = "\n".join([f"{HEADER},kind", *accents]) + "\n"
    files[0 if turned else 2].write_text(lines, encoding=encoding)
    if encoding == "utf-16":
        with pytest.raises(DatasetError, match="is written otherwise"):
            draft_mapping(files, mapping="m.toml")
        return
    found = tomllib.loads(draft_mapping(files, mapping="m.toml"))
    assert found["tables"]["part_0"].get("encoding", "utf-8") == encoding


@pytest.mark.parametrize("turned", [False, True])
def test_a_part_that_is_in_ascii_at_first_keeps_its_encoding(
    tmp_path: Path, *, turned: bool
) -> None:
    """Fails where the first lines decide: its accents would be other letters, without a word."""
    late = [f"{row},cafe" for row in ROWS * 60] + [f"{ROWS[0]},caf\u00e9"]
    files = [part(tmp_path, n, late, f"{HEADER},kind") for n in range(2)]
    assert files[0].stat().st_size > 1 << 19
    lines = "\n".join([f"{HEADER},kind", f"{ROWS[0]},caf\u00e9"]) + "\n"
    files[0 if turned else 1].write_text(lines, encoding="latin-1")
    with pytest.raises(DatasetError, match="is written otherwise"):
        draft_mapping(files, mapping="m.toml")


@pytest.mark.parametrize(
    ("cell", "encoding"), [('19" wide', "utf-8"), ("caf\u00e9", "latin-1"), ('"a, b"', "utf-8")]
)
def test_a_header_does_not_say_how_cells_are_written(
    tmp_path: Path, cell: str, encoding: str
) -> None:
    """A part without rows has no quotation marks, and is of any encoding."""
    files = [part(tmp_path, 1, []), part(tmp_path, 2, [])]
    for file, rows in zip(files, ([], ROWS), strict=True):
        lines = [f"{HEADER},kind", *(f"{row},{cell}" for row in rows)]
        file.write_text("\n".join(lines) + "\n", encoding=encoding)
    splits = load_schema(prepared(tmp_path, *files)).splits
    assert sum(split.impressions for split in splits.values()) == 400
