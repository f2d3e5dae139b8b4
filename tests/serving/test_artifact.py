"""An artifact that is not what was exported is not served."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cdp_torchrec.serving.artifact import MANIFEST, ArtifactError, Manifest, write_manifest
from cdp_torchrec.serving.predictor import Predictor
from tests.largest_file import largest_file
from tests.other_codes import with_other_codes

FILES = (
    "config.toml",
    "schema.toml",
    "golden.json",
    "ranker.pt2",
    "vocabulary/item.parquet",
    "tables/item-00000-of-00001.npy",
)


@pytest.mark.parametrize("name", FILES)
def test_an_altered_or_missing_file_is_named(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name}: altered"):
        Predictor.open(copied)
    (copied / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: missing"):
        Predictor.open(copied)
    os.mkfifo(copied / name)  # whoever opens it waits for a writer
    with pytest.raises(ArtifactError, match=f"{name}: is no regular file"):
        Predictor.open(copied)


def test_a_full_disk_for_private_copies_is_named(copied: Path) -> None:
    with largest_file(1000), pytest.raises(ArtifactError, match=r"private copy in .* too large"):
        Predictor.open(copied)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format_version": 99}, "format 99, this release reads 3: export the run again"),
        ({"name": "another"}, "altered after the export"),
        ({"inputs": 3}, "cannot read the artifact"),
    ],
)
def test_an_altered_manifest_is_refused(copied: Path, changed: dict, said: str) -> None:
    path = copied / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ArtifactError, match=said):
        Predictor.open(copied)


def test_no_artifact_and_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is no artifact: artifact\.json is missing"):
        Predictor.open(tmp_path)
    (tmp_path / MANIFEST).write_text("[1]")
    with pytest.raises(ArtifactError, match="cannot read the artifact"):
        Predictor.open(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"torch_version": "1.0.0"}, "compiled by torch 1.0.0"),
        ({"cpu_capability": "SSE9"}, "compiled for SSE9"),
        pytest.param(
            {"device": "cuda"},
            "compiled for CUDA",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_an_artifact_of_another_machine_is_refused(copied: Path, changed: dict, said: str) -> None:
    rewrite(copied, changed)
    with pytest.raises(ArtifactError, match=said):
        Predictor.open(copied)


def test_wrong_scores_are_found_by_the_golden_request_even_if_all_checksums_fit(
    copied: Path,
) -> None:
    path = copied / "tables" / "position-00000-of-00001.npy"
    np.save(path, np.load(path) + 0.5)
    rewrite(copied, {})
    with pytest.raises(ArtifactError, match="golden request scores differently"):
        Predictor.open(copied)


def test_a_history_store_of_other_codes_is_refused(
    artifact: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    assert Predictor.open(artifact, history_store=tiny_dataset).metadata.has_history_store
    assert not Predictor.open(artifact).metadata.has_history_store
    other = with_other_codes(tiny_dataset, tmp_path / "other")
    said = r"vocabulary item: \d+ ids in both, other codes"
    with pytest.raises(ArtifactError, match=said) as raised:
        Predictor.open(artifact, history_store=other)
    assert str(artifact) in str(raised.value) and str(other) in str(raised.value)


def test_a_damaged_history_store_is_refused_at_load(
    artifact: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(tiny_dataset, tmp_path / "store"))
    shutil.rmtree(store / "train")  # what serving does not read may be left behind
    Predictor.open(artifact, history_store=store)
    items = store / "history" / "by_time" / "item.npy"
    np.save(items, np.load(items)[::-1].copy())
    with pytest.raises(ArtifactError, match=r"by_time/item\.npy: other bytes"):
        Predictor.open(artifact, history_store=store)


def rewrite(artifact: Path, changed: dict) -> None:
    """The artifact with another manifest, whose checksums fit."""
    fields = json.loads((artifact / MANIFEST).read_text())
    fields.pop("version")
    (artifact / MANIFEST).unlink()
    write_manifest(artifact, Manifest.model_validate(fields | changed, strict=False))
