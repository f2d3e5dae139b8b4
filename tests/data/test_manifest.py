"""A dataset that is not what its preparation wrote is refused: at once, or by reading all of it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands.prepare_data import main
from cdp_torchrec.data import manifest
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.manifest import MANIFEST, find_damage, write_manifest
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.schema import DatasetError


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy, to spoil."""
    return Path(shutil.copytree(tiny_dataset, tmp_path / "dataset"))


def open_all(dataset: Path) -> None:
    """Open what a training opens."""
    reader = DatasetReader(DataConfig(dir=dataset))
    reader.impressions("train")
    reader.impressions("test")
    assert reader.store


def change(path: Path, make: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(path, make(np.load(path)))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def shuffled(values: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).permutation(values)


TAMPERED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "reversed keys": (
        "history/by_category/keys.npy",
        lambda path: change(path, lambda keys: keys[::-1].copy()),
        "other bytes",
    ),
    "shuffled items": ("history/by_time/item.npy", lambda path: change(path, shuffled), "other"),
    "shifted times": (
        "history/by_category/timestamp.npy",
        lambda path: change(path, lambda times: times + 3_600_000),
        "other bytes",
    ),
    "a cut file": ("train/part-00000.parquet", lambda path: path.write_bytes(b"PAR1"), "4 bytes"),
    "a flipped bit": ("test/part-00000.parquet", lambda path: flip(path, 4), "other bytes"),
    "a missing file": ("history/user_offsets.npy", lambda path: path.unlink(), "missing"),
    "a second copy": (
        "train/part-00007.parquet",
        lambda path: shutil.copyfile(path.with_name("part-00000.parquet"), path),
        "not written by the preparation",
    ),
    "an edited summary": (
        "summary.toml",
        lambda path: path.write_text(path.read_text().replace("value = ", "value =  ", 1)),
        "bytes, the preparation wrote",
    ),
    "an edited schema": (
        "schema.toml",
        lambda path: path.write_text(path.read_text() + "\n"),
        "bytes, the preparation wrote",
    ),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_tampered_files_are_named_at_open_and_by_verify(dataset: Path, kind: str) -> None:
    open_all(dataset)
    assert find_damage(dataset) == {}
    name, tamper, said = TAMPERED[kind]
    tamper(dataset / name)
    with pytest.raises(DatasetError, match=f"{name}: .*{said}"):
        open_all(dataset)
    assert list(find_damage(dataset)) == [name]


def test_the_vocabularies_are_looked_at_when_tables_are_made(dataset: Path) -> None:
    path = dataset / "vocabulary" / "item.parquet"
    path.write_bytes((dataset / "vocabulary" / "category.parquet").read_bytes())
    with pytest.raises(DatasetError, match=r"vocabulary/item\.parquet: .* the preparation wrote"):
        DatasetReader(DataConfig(dir=dataset)).layout(HistoryLookup(), history_counts=False)


def test_one_bit_of_a_large_file_is_found_by_reading_all_of_it(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "CHUNK", 10_000)
    monkeypatch.setattr(manifest, "_BLOCKS", 4)
    write_manifest(dataset)
    assert find_damage(dataset) == {}
    path = dataset / "history" / "by_time" / "timestamp.npy"
    assert path.stat().st_size > 60_000
    flip(path, 10_100)  # between the first two of the blocks that are looked at
    manifest.check_at_open(dataset, "history")
    (found,) = find_damage(dataset).items()
    assert found == ("history/by_time/timestamp.npy", "other bytes from byte 10,000 on")


def test_a_flipped_bit_of_the_requests_is_an_error_where_they_are_read(dataset: Path) -> None:
    path = dataset / "test" / "part-00000.parquet"
    intact = DatasetReader(DataConfig(dir=dataset)).impressions("test")
    pages = pq.ParquetFile(path).metadata.row_group(0).column(0)
    flip(path, pages.data_page_offset + pages.total_compressed_size // 2)
    with pytest.raises(DatasetError, match=r"part-00000\.parquet: row group 0: .*checksum"):
        intact.take(0, 0, 8)


def test_all_ranks_together_read_each_byte_once(dataset: Path) -> None:
    for name in ("history/by_time/item.npy", "test/part-00000.parquet", "vocabulary/user.parquet"):
        flip(dataset / name, -1)
    parts = [find_damage(dataset, share=(rank, 3), active=False) for rank in range(3)]
    assert sorted(name for part in parts for name in part) == [
        "history/by_time/item.npy",
        "test/part-00000.parquet",
        "vocabulary/user.parquet",
    ]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "cannot read the checksums of the dataset: No such file"),
        (lambda path: path.write_text("{"), "is damaged"),
        (lambda path: path.write_text("[1]"), "is damaged"),
        (lambda path: flip(path, 300), "is damaged"),
        (lambda path: path.write_text('{"format_version": 9}'), "format 9, this release reads 1"),
    ],
)
def test_a_damaged_manifest_accuses_no_other_file(
    dataset: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(dataset / MANIFEST)
    with pytest.raises(DatasetError, match=f"{MANIFEST}: {said}.*prepare the dataset again"):
        open_all(dataset)


def test_the_first_configuration_and_files_of_the_user_may_change(dataset: Path) -> None:
    (dataset / "starter.toml").write_text("# mine\n")
    (dataset / "notes.txt").write_text("mine")
    (dataset / "train" / ".DS_Store").write_text("the file browser's")
    open_all(dataset)
    assert find_damage(dataset) == {}


def test_verify_names_every_damaged_file(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", str(dataset)])
    assert "are what the preparation wrote" in capsys.readouterr().out
    names = [path.relative_to(dataset) for path in sorted((dataset / "history").rglob("*.npy"))]
    for name in names:
        flip(dataset / name, -1)
    with pytest.raises(DatasetError) as raised:
        main(["verify", str(dataset)])
    assert len(names) > 8
    assert all(f"{name}: other bytes" in str(raised.value) for name in names)
    with pytest.raises(DatasetError, match="is no dataset directory"):
        main(["verify", str(dataset / "train")])


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("by_category/keys.npy", lambda keys: keys[::-1].copy(), "keys do not rise"),
        ("user_offsets.npy", lambda offsets: offsets + 1, "no list of offsets"),
        ("by_category/timestamp.npy", lambda times: -times, "older than the one before it"),
        ("by_time/timestamp.npy", lambda times: times[::-1].copy(), "older than the one before"),
        ("by_time/item.npy", lambda items: items + 100_000, "holds code 100,"),
        ("by_category/action.npy", lambda actions: actions - 9, "holds code -"),
    ],
)
def test_a_store_in_another_order_is_refused_whatever_its_checksums(
    dataset: Path, name: str, make: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    change(dataset / "history" / name, make)
    write_manifest(dataset)
    with pytest.raises(DatasetError, match=f"history/{name}: .*{said}"):
        open_all(dataset)


def test_a_manifest_fits_its_files_as_json_says(dataset: Path) -> None:
    files = json.loads((dataset / MANIFEST).read_text())["files"]
    for name, record in files.items():
        content = (dataset / name).read_bytes()
        assert record["size"] == len(content)
        assert record["sha256"] == [hashlib.sha256(content).hexdigest()]
