"""A draft of a mapping guesses what a reader would, and runs as it stands."""

import os
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands.prepare_data import main
from cdp_torchrec.data.prepare.mapped.draft import draft_mapping
from cdp_torchrec.data.prepare.mapped.sniffed_files import sniff
from cdp_torchrec.data.schema import DatasetError, load_schema
from tests.data.mapped_logs import START, write_csv
from tests.data.test_drawn_negatives import actions
from tests.data.trivago_events import Rows
from tests.docs.logs import write_shop


def drafted(*paths: Path) -> dict[str, Any]:
    """The mapping that is drafted of some files."""
    return tomllib.loads(draft_mapping(paths, mapping="mapping.toml"))


def prepared(folder: Path, *files: Path) -> Path:
    """The dataset of a draft that nobody edited."""
    mapping = folder / "mapping.toml"
    main(["draft", *map(str, files), "--output", str(mapping)])
    folders = ["--input", str(files[0].parent), "--output", str(folder / "data")]
    main(["generic", str(mapping), *folders])
    return folder / "data"


def test_a_shop_with_items_and_views_is_understood_and_runs_unedited(tmp_path: Path) -> None:
    write_shop(tmp_path / "logs")
    files = [tmp_path / "logs" / f"{name}.csv" for name in ("items", "impressions", "views")]
    found = drafted(*files)
    assert found["log"] == {
        "table": "impressions",
        "rows": "impression",
        "user": "user_id",
        "item": "item_id",
        "request": ["page_id"],
        "time": {"column": "time", "unit": "s"},
        "label": {"column": "clicked", "above": 0},
    }
    assert found["category"] == "category_id"
    assert found["tables"]["items"] == {
        "files": ["items.csv"],
        "delimiter": ",",
        "by": "item",
        "key": "id",
    }
    assert found["tables"]["views"]["delimiter"] == ";"
    assert found["behaviours"]["views"]["time"]["format"] == "iso8601"
    assert {n: (f["role"], f["level"], f["kind"]) for n, f in found["features"].items()} == {
        "category_id": ("item", "candidate", "id"),
        "price": ("item", "candidate", "number"),
        "hour": ("context", "request", "id"),
    }
    schema = load_schema(prepared(tmp_path, *files))
    assert schema.splits["train"].requests + schema.splits["test"].requests == 300


@pytest.mark.slow
def test_lists_in_parquet_run_unedited(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "impression_id": n,
            "user_id": int(rng.integers(20)),
            "impression_time": datetime.fromtimestamp(START + 600 * n, UTC),
            "device_type": int(n % 3),
            "article_ids_inview": [int(i) for i in rng.permutation(30)[:5]],
            "categories": [int(i) for i in rng.integers(3, size=5)],
        }
        for n in range(200)
    ]
    for row in rows:
        row["article_ids_clicked"] = [row["article_ids_inview"][2]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "behaviors.parquet")
    found = drafted(tmp_path / "behaviors.parquet")
    assert found["log"]["rows"] == "request"
    assert found["log"]["request"] == ["impression_id"]
    assert found["log"]["clicked"] == "article_ids_clicked"
    assert found["log"]["time"]["unit"] == "timestamp"
    assert found["features"]["device_type"]["role"] == "scene"
    schema = load_schema(prepared(tmp_path, tmp_path / "behaviors.parquet"))
    assert schema.gate_feature() == "category_id"


@pytest.mark.slow
def test_a_log_of_actions_without_a_header_runs_unedited(tmp_path: Path) -> None:
    stray = {"user": "7", "item": "i1", "category": "c1", "action": "view", "time": START - 10**8}
    rows = [row | {"user": row["user"][1:]} for row in actions(600)] + [stray]
    path = tmp_path / "log.csv"
    path.write_text("".join(",".join(map(str, row.values())) + "\n" for row in rows))
    found = drafted(path)
    assert found["log"]["label"] == {"column": "column_4", "one_of": ["view"]}
    assert found["window"] == {"start": "2025-06-01", "end": "2025-06-02"}
    assert found["category"] == "category_id"
    assert load_schema(prepared(tmp_path, path)).history.num_behaviours == 600


def test_what_is_known_too_late_is_left_out_with_its_reason(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows: Rows = []
    for page in range(100):
        for item in range(5):
            clicked = int(rng.random() < 0.3)
            later = {"play_time": clicked * 7, "code": clicked ^ int(rng.random() < 0.02)}
            ids = {"page_id": page, "user_id": page % 9, "item_id": item, "time": START + page}
            rows.append(ids | {"is_click": clicked} | later | {"tab": page % 4})
    write_csv(tmp_path / "log.csv", rows)
    text = draft_mapping([tmp_path / "log.csv"], mapping="mapping.toml")
    assert list(tomllib.loads(text)["features"]) == ["tab"]
    assert "# 'play_time' is left out: by its name it is known after the display only" in text
    assert "# 'code' is left out: alone it tells the clicks of the sample with AUC 0.9" in text


@pytest.mark.slow
def test_the_draft_of_a_real_log_of_lists_runs_unedited(tmp_path: Path) -> None:
    source = os.environ.get("CDP_TORCHREC_EBNERD")
    if not source:
        pytest.skip("CDP_TORCHREC_EBNERD does not name a directory of the official files")
    path = Path(source) / "train" / "behaviors.parquet"
    splits = load_schema(prepared(tmp_path, path)).splits.values()
    lists = pq.read_table(path, columns=["article_ids_inview"])["article_ids_inview"]
    assert sum(split.requests for split in splits) == len(lists)
    assert sum(split.impressions for split in splits) == sum(map(len, lists.to_pylist()))


FORMS = {
    "tabs": "u\tn\nann\t1\nbob\t2\n",
    "commas and lists": "u,n\nann,1;2;3\nbob,4;5;6\n",
    "semicolons": 'u;n\n"a;b";1,5\nbob;2,5\n',
    "two colons": "1::2\n3::4\n",
    "quotation marks in titles": 'u|n\nann|the "x" of\nbob|"\n',
}
FOUND = {
    "tabs": ("\t", None, '"'),
    "commas and lists": (",", None, '"'),
    "semicolons": (";", None, '"'),
    "two colons": ("::", ("column_1", "column_2"), None),
    "quotation marks in titles": ("|", None, None),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_the_format_of_a_text_is_found(tmp_path: Path, encoding: str) -> None:
    for case, text in FORMS.items():
        text = text.replace("bob", "b\xf6b")
        (tmp_path / "log.csv").write_bytes(text.encode(encoding))
        form = sniff(tmp_path / "log.csv").form
        assert form
        assert (form.delimiter, form.names, form.quote) == FOUND[case], case
        assert form.encoding == encoding or "\xf6" not in text


def test_parts_of_a_table_are_gathered_and_compressed_files_are_read(tmp_path: Path) -> None:
    write_shop(tmp_path)
    (tmp_path / "more.csv").write_bytes((tmp_path / "impressions.csv").read_bytes())
    found = drafted(*(tmp_path / f"{name}.csv" for name in ("impressions", "more")))
    assert found["tables"]["impressions"]["files"] == ["impressions.csv", "more.csv"]


def test_what_cannot_be_drafted_is_an_error_and_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,price\nann,3\n")
    with pytest.raises(DatasetError, match=r"log.csv: no item and no time among \['user_id', 'pr"):
        drafted(path)
    path.write_text("user_id,item_id,when\nann,3,05/01/2025 00:02\n")
    said = r"no time among .*; 'when' is called a time, but '05/01/2025 00:02' is in no form"
    with pytest.raises(DatasetError, match=said):
        drafted(path)
    path.write_text("one\ntwo\n")
    with pytest.raises(DatasetError, match=r"log.csv: no delimiter out of .* it begins with 'one'"):
        drafted(path)
    path.write_text("")
    with pytest.raises(DatasetError, match=r"log.csv: the file is empty"):
        drafted(path)
    for text in ("x" * 300_000, "\ufeff"):
        path.write_text(text)
        with pytest.raises(DatasetError, match=r"log.csv: no table: its first line is empty or"):
            drafted(path)
    with pytest.raises(DatasetError, match=r"log.csv exists; remove it or choose another name"):
        main(["draft", str(path), "--output", str(path)])


def impressions(**columns: list[str]) -> str:
    """A log of 400 impressions, four a request, in CSV; further columns take turns."""
    lines = [",".join(["user_id", "item_id", "ts", "request_id", *columns])]
    for row in range(400):
        request = row // 4
        own = [f"u{request % 30}", f"i{row % 37}", str(START + 500 * request), f"r{request}"]
        more = [values[row % len(values)] for values in columns.values()]
        lines.append(",".join([*own, *more]))
    return "\n".join(lines) + "\n"


def drafted_text(folder: Path, **columns: list[str]) -> str:
    file = folder / "log.csv"
    file.write_text(impressions(**columns))
    return draft_mapping([file], mapping="m.toml")


@pytest.mark.parametrize(
    ("values", "clicks"),
    [
        (["False", "True", "False", "False", "False"], ["True"]),
        (["no", "no", "yes"], ["yes"]),
        (["N", "N", "Y"], ["Y"]),
        (["FALSE", "true", "false"], ["true"]),
    ],
)
def test_clicks_in_words_are_labels(tmp_path: Path, values: list[str], clicks: list[str]) -> None:
    found = tomllib.loads(drafted_text(tmp_path, clicked=values))
    assert found["log"]["rows"] == "impression"
    assert found["log"]["label"] == {"column": "clicked", "one_of": clicks}


def test_a_label_that_cannot_be_read_is_pointed_at(tmp_path: Path) -> None:
    text = drafted_text(tmp_path, clicked=["shown", "taken", "shown"])
    assert "# READ THIS: 'clicked' is called a label" in text
    assert tomllib.loads(text)["log"]["rows"] == "action"


def test_words_are_the_name_of_one_category_and_ids_are_several(tmp_path: Path) -> None:
    names = ["Women Shoes", "Women Coats", "Men Shoes", "Kids Toys", "Kids Coats"]
    text = drafted_text(
        tmp_path, clicked=["0", "0", "1"], category=names, genre=["a|b", "a|c", "d", "d|e", "a"]
    )
    found = tomllib.loads(text)["features"]
    assert "separator" not in found["category_id"]
    assert found["genre"]["separator"] == "|"
    assert "bags are of level request only; 5 values become 2" in text
    rows = [f"N{n} N{n + 1}" for n in range(11)]
    assert (
        tomllib.loads(drafted_text(tmp_path, clicked=["0", "1"], parts=rows))["features"]["parts"][
            "separator"
        ]
        == " "
    )


def test_numbers_that_are_written_oddly_are_no_ids(tmp_path: Path) -> None:
    prices, clicked = [str(n * 37 % 199 + 0.5) for n in range(198)], ["0", "0", "1"]
    found = tomllib.loads(drafted_text(tmp_path, clicked=clicked, price=[*prices, "n/a"]))
    assert found["features"]["price"]["kind"] == "number"
    assert found["tables"]["log"]["missing"] == ["n/a"]
    text = drafted_text(tmp_path, clicked=clicked, price=[*prices, "ask"])
    assert "'price' is left out: numbers but for 2 of 400 rows, such as 'ask'" in text
    commas = [f'"{n},5"' for n in range(199)]
    text = drafted_text(tmp_path, clicked=clicked, price=commas)
    assert "'price' is left out: its numbers may have a decimal comma" in text
    assert "features" not in tomllib.loads(text)


def test_names_with_spaces_and_hyphens_are_recognised_and_ids_of_requests_are_no_features(
    tmp_path: Path,
) -> None:
    file = tmp_path / "\u00f6 d" / "log.csv"
    file.parent.mkdir()
    header, rest = impressions(clicked=["0", "0", "1"], trace=["x"]).split("\n", 1)
    rows = [line.split(",") for line in rest.splitlines()]
    rest = "\n".join(",".join([*row[:-1], f"t{row[3]}"]) for row in rows)
    names = header.replace("user_id", "User ID").replace("request_id", "Page-ID")
    file.write_text(f"{names}\n{rest}\n")
    text = draft_mapping([file], mapping="my map.toml")
    found = tomllib.loads(text)
    assert found["log"]["user"] == "User ID"
    assert found["log"]["request"] == ["Page-ID"]
    assert "'trace' is left out: each request has its own" in text
    assert f"generic 'my map.toml' --input '{file.parent}'" in text


def test_files_whose_names_are_not_ascii_run_unedited(tmp_path: Path) -> None:
    write_shop(tmp_path / "logs")
    files = []
    for name, other in (
        ("items", "artikel \u00fc"),
        ("impressions", "\u540d"),
        ("views", "\u00f6"),
    ):
        files.append(tmp_path / "logs" / f"{other}.csv")
        (tmp_path / "logs" / f"{name}.csv").rename(files[-1])
    schema = load_schema(prepared(tmp_path, *files))
    assert schema.splits["train"].requests + schema.splits["test"].requests == 300


def with_times(folder: Path, written: Callable[[int], str]) -> Path:
    """A log of impressions whose times are written in another way; four rows have each."""
    header, rest = impressions(clicked=["0", "0", "1"]).split("\n", 1)
    rows = [line.split(",") for line in rest.splitlines()]
    for row in rows:
        row[2] = written(int(row[2]))
    folder.mkdir()
    file = folder / "log.csv"
    file.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return file


def test_times_with_and_without_a_z_are_read(tmp_path: Path) -> None:
    def written(second: int) -> str:
        zone = ("Z", "+02:00", "-05:00")[second // 500 % 3]
        return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}{zone}"

    file = with_times(tmp_path / "logs", written)
    schema = load_schema(prepared(tmp_path, file))
    assert schema.splits["train"].requests + schema.splits["test"].requests == 100


def test_iso_times_with_and_without_fractions_and_zones_are_read(tmp_path: Path) -> None:
    def written(second: int) -> str:
        part = 123_456 if second % 3000 else 0  # which isoformat() does not write
        return datetime.fromtimestamp(second, UTC).replace(microsecond=part).isoformat()

    file = with_times(tmp_path / "logs", written)
    assert drafted(file)["log"]["time"] == {"column": "ts", "unit": "text", "format": "iso8601"}
    schema = load_schema(prepared(tmp_path, file))
    assert schema.splits["train"].first_timestamp == 1000 * START
    file = with_times(tmp_path / "naive", lambda second: written(second).removesuffix("+00:00"))
    assert drafted(file)["log"]["time"]["utc_offset"] == "+00:00"


def test_days_and_times_without_zeros_keep_a_form_of_their_own(tmp_path: Path) -> None:
    def form(name: str, written: str) -> str:
        moments = with_times(
            tmp_path / name, lambda second: f"{datetime.fromtimestamp(second, UTC):{written}}"
        )
        return drafted(moments)["log"]["time"]["format"]

    assert form("days", "%Y-%m-%d") == "%Y-%m-%d"
    assert form("no_zeros", "%Y-%-m-%-d %-H:%M:%S") == "%Y-%m-%d %H:%M:%S"


def test_a_line_with_other_cells_is_named(tmp_path: Path) -> None:
    lines = impressions(clicked=["0", "1"]).splitlines()
    lines[102] = lines[102].rpartition(",")[0]
    file = tmp_path / "log.csv"
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DatasetError, match=r"line 103 has 4 cells, the first one 5, .* ','"):
        draft_mapping([file], mapping="m.toml")


def parquet_log(folder: Path, **columns: list[Any]) -> Path:
    """A log of 400 impressions in parquet, with further or other columns."""
    lines = [line.split(",") for line in impressions(clicked=["0", "1"]).splitlines()]
    own = dict(zip(lines[0], zip(*lines[1:], strict=True), strict=True))
    own |= {name: [int(v) for v in own[name]] for name in ("ts", "clicked")}
    pq.write_table(pa.table(own | columns), folder / "log.parquet")
    return folder / "log.parquet"


def test_nan_in_parquet_is_missing_and_floating_ids_are_refused(tmp_path: Path) -> None:
    prices = [float("nan") if row % 7 == 0 else row * 0.37 for row in range(400)]
    file = parquet_log(tmp_path, price=prices, brand_id=[float(row % 9) for row in range(400)])
    text = draft_mapping([file], mapping="m.toml")
    assert tomllib.loads(text)["features"]["price"]["kind"] == "number"
    assert "'brand_id' is left out: floating point numbers, which are no ids" in text
    prepared(tmp_path, file)
    file = parquet_log(tmp_path, user_id=[float(row // 4 % 30) for row in range(400)])
    with pytest.raises(DatasetError, match=r"log.parquet: 'user_id' has floating point numbers,"):
        draft_mapping([file], mapping="m.toml")


def test_a_name_that_occurs_twice_in_a_header_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text(impressions(clicked=["0", "1"], price=["1", "2"]).replace("price", "item_id"))
    with pytest.raises(DatasetError, match=r"log.csv: column 'item_id' occurs 2 times in the fi"):
        draft_mapping([file], mapping="m.toml")


def test_lines_may_break_inside_of_quoted_cells(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "log.csv"
    file.parent.mkdir()
    titles = ['"a ""b""\nc"', '"d, e\n\nf"', '"g"']
    file.write_text(impressions(clicked=["0", "0", "1"], title=titles))
    schema = load_schema(prepared(tmp_path, file))
    assert schema.splits["train"].requests + schema.splits["test"].requests == 100
