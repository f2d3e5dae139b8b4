"""A delta on its base is the artifact that it leads to, or it is refused."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.commands import export
from cdp_torchrec.config import ConfigError
from cdp_torchrec.serving.artifact import (
    GOLDEN,
    MANIFEST,
    ArtifactError,
    read_manifest,
    write_manifest,
)
from cdp_torchrec.serving.delta import DELTA
from cdp_torchrec.serving.delta_export import delta_between
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request
from tests.serving.conftest import complete
from tests.serving.test_signature import make_key


def scores(predictor: Predictor, requests: list[Request]) -> np.ndarray:
    return np.concatenate([predictor.score(request) for request in requests[:8]])


def test_deltas_applied_one_after_the_other_are_the_full_exports(
    days: Path, tiny_dataset: Path, requests: list[Request]
) -> None:
    predictor = Predictor.open(days / "released" / "full-0", history_store=tiny_dataset)
    first = scores(predictor, requests)
    patched = predictor
    for day in (1, 2):
        patched = patched.apply(days / "released" / f"delta-{day}")
        full = Predictor.open(days / f"full-{day}", history_store=tiny_dataset)
        assert patched.metadata == full.metadata
        np.testing.assert_array_equal(scores(patched, requests), scores(full, requests))
        assert np.abs(scores(patched, requests) - first).max() > 1e-3
    np.testing.assert_array_equal(scores(predictor, requests), first)
    for name, full in (("delta-1", "full-1"), ("delta-2", "full-2")):
        sizes = [
            sum(path.stat().st_size for path in (folder / part).iterdir())
            for folder, part in ((days / "released" / name, "rows"), (days / full, "tables"))
        ]
        assert sizes[0] < 0.4 * sizes[1]


def test_a_delta_is_opened_with_what_lies_beside_it(
    days: Path, tiny_dataset: Path, requests: list[Request]
) -> None:
    full = Predictor.open(days / "full-2", history_store=tiny_dataset)
    found = Predictor.open(days / "released" / "delta-2", history_store=tiny_dataset)
    assert found.metadata == full.metadata
    np.testing.assert_array_equal(scores(found, requests), scores(full, requests))


def test_a_folder_that_may_not_be_read_does_not_hide_what_lies_beside_it(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = released / "Locked"  # as lost+found on many a mounted disk; the first by its name
    locked.mkdir()
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if path.parent == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert Predictor.open(released / "delta-1").metadata.version


def test_a_copy_of_the_base_that_is_still_being_made_is_passed_over(released: Path) -> None:
    shutil.copytree(released / "full-0", released / ".full-0.part")
    shutil.rmtree(released / ".full-0.part" / "vocabulary")
    assert Predictor.open(released / "delta-1").metadata.version


def test_a_delta_over_two_days_is_made_of_what_is_there(days: Path, tmp_path: Path) -> None:
    base = Predictor.open(days / "released" / "full-0")
    delta_between(
        days / "released" / "delta-2",
        days / "released" / "full-0",
        tmp_path / "delta",
        signing_key=None,
    )
    assert base.apply(tmp_path / "delta").metadata == Predictor.open(days / "full-2").metadata


def test_a_delta_is_applied_to_what_it_begins_from_and_once(days: Path, released: Path) -> None:
    base, other = (Predictor.open(days / f) for f in ("released/full-0", "full-2"))
    with pytest.raises(ArtifactError, match="apply the deltas in between first"):
        base.apply(released / "delta-2")
    patched = base.apply(released / "delta-1")
    with pytest.raises(ArtifactError, match="which was applied already"):
        patched.apply(released / "delta-1")
    with pytest.raises(ArtifactError, match=r"is a delta of version \w+, and \w+ is served"):
        other.apply(released / "delta-1")
    with pytest.raises(ArtifactError, match=r"is no delta: delta\.json is missing"):
        base.apply(released / "full-0")
    shutil.rmtree(released / "delta-1")
    with pytest.raises(ArtifactError, match="neither served nor lies beside it"):
        Predictor.open(released / "delta-2")


@pytest.mark.parametrize(
    "name", [DELTA, MANIFEST, GOLDEN, "rows/item-index.npy", "rows/item-values.npy"]
)
def test_a_spoilt_file_of_a_delta_is_named(days: Path, released: Path, name: str) -> None:
    base = Predictor.open(days / "released" / "full-0")
    path = released / "delta-1" / name
    content = path.read_bytes()
    for spoilt in (content[: len(content) // 2], _flipped(content)):
        path.write_bytes(spoilt)
        with pytest.raises(ArtifactError, match=f"delta-1/{name}: (altered|was altered|cannot)"):
            base.apply(released / "delta-1")
    path.write_bytes(content)
    (released / "delta-1" / "more").touch()
    with pytest.raises(ArtifactError, match="more: is not part of the artifact"):
        base.apply(released / "delta-1")


@pytest.mark.parametrize("is_gone", [True, False])
def test_what_a_delta_follows_must_stay_as_it_was(released: Path, is_gone: bool) -> None:
    base = Predictor.open(released / "full-0")
    path = released / "full-0" / "vocabulary" / "item.parquet"
    if is_gone:
        path.unlink()
    else:
        path.write_bytes(_flipped(path.read_bytes()))
    said = "missing" if is_gone else r"altered after the export \(checksum\)"
    advice = "the delta .*/delta-1 needs what it follows as it was: bring it back, or take a full"
    with pytest.raises(ArtifactError, match=f"full-0/vocabulary/item.parquet: {said}; {advice}"):
        base.apply(released / "delta-1")


def _flipped(content: bytes) -> bytes:
    """The same, one bit of the ninth byte from the end differs."""
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def test_a_delta_is_served_if_all_that_it_follows_is_signed(
    days: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = make_key(tmp_path, "ours")
    base, delta = tmp_path / "base", tmp_path / "delta"
    shutil.copytree(days / "released" / "full-0", base)
    write_manifest(base, read_manifest(base), signing_key=private)
    export.main(
        [
            str(days / "full-1"),
            f"--delta-from={base}",
            f"--output={delta}",
            f"export.signing_key={private}",
        ]
    )
    assert "item" in (said := capsys.readouterr().out) and "MiB" in said
    served = Predictor.open(base, trusted_keys=[public])
    assert served.apply(delta).metadata.version == read_manifest(days / "full-1").version
    Predictor.open(delta, trusted_keys=[public])
    (delta / "delta.sig").write_bytes(b"of somebody else")
    with pytest.raises(ArtifactError, match=r"delta\.sig: not signed by any"):
        served.apply(delta)


def test_an_artifact_takes_in_no_other(days: Path, released: Path) -> None:
    base = released / "full-0"
    for output in (base / "delta", base / "tables" / "more" / "delta"):
        with pytest.raises(ConfigError, match=r"delta: lies in the artifact .*full-0, which could"):
            delta_between(days / "full-1", base, output, signing_key=None)
    Predictor.open(base)


def test_artifacts_of_another_model_have_no_delta(days: Path, copied: Path, tmp_path: Path) -> None:
    path = copied / "config.toml"
    path.write_text(path.read_text().replace("max_candidates = 50", "max_candidates = 60"))
    complete(copied)
    base = days / "released" / "full-0"
    with pytest.raises(ConfigError, match=r"max_candidates: 50 in the base, 60 .*\nexport it in"):
        delta_between(copied, base, tmp_path / "delta", signing_key=None)
    with pytest.raises(ArtifactError, match="both of version"):
        delta_between(base, base, tmp_path / "delta", signing_key=None)
    with pytest.raises(ConfigError, match="needs --delta-from EARLIER and --output DIR"):
        export.main([str(copied)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact"]
