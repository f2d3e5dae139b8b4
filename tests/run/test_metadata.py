"""The index of a checkpoint is read without running what it says."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from cdp_torchrec.run.metadata import SafeReader
from cdp_torchrec.run.records import DamagedCheckpointError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": {"c": torch.ones(3, dtype=torch.uint8)}}


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    dcp.save(dict(TENSORS), checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    return tmp_path / "checkpoint"


def load(checkpoint: Path) -> dict[str, Any]:
    state = {"a": torch.zeros(2, 3), "b": {"c": torch.zeros(3, dtype=torch.uint8)}}
    dcp.load(state, storage_reader=SafeReader(checkpoint), no_dist=True)
    return state


def index(checkpoint: Path) -> Metadata:
    return pickle.loads((checkpoint / ".metadata").read_bytes())


def test_a_checkpoint_of_tensors_is_read(checkpoint: Path) -> None:
    state = load(checkpoint)
    assert torch.equal(state["a"], TENSORS["a"])
    assert torch.equal(state["b"]["c"], TENSORS["b"]["c"])


def test_an_index_that_names_members_of_enumerations_is_read(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = index(checkpoint)
    with monkeypatch.context() as patch:
        # As Python 3.11.0 to 3.11.3 do.
        patch.setattr(
            _MEM_FORMAT_ENCODING,
            "__reduce_ex__",
            lambda member, _: (getattr, (type(member), member.name)),
        )
        content = pickle.dumps(found)
    assert b"getattr" in content
    (checkpoint / ".metadata").write_bytes(content)
    assert SafeReader(checkpoint).read_metadata() == found
    assert torch.equal(load(checkpoint)["a"], TENSORS["a"])


class _Call:
    """Something that calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        _Call(os.system, "touch harm"),
        _Call(eval, "open('harm', 'w')"),
        _Call(getattr, Path, "touch"),
        _Call(torch.load, "harm"),
        _Call(Path.touch, Path("harm")),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_an_index_that_calls_a_function_is_refused_before_it_does(
    checkpoint: Path, call: _Call, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    found: Any = index(checkpoint)
    if not whole:
        found.planner_data = {"a": call}
    (checkpoint / ".metadata").write_bytes(pickle.dumps(call if whole else found))
    with pytest.raises(DamagedCheckpointError, match=r"\.metadata: is damaged: it names"):
        SafeReader(checkpoint).read_metadata()
    assert not Path("harm").exists()


def test_an_index_that_asks_an_enumeration_for_more_than_a_member_is_refused(
    checkpoint: Path,
) -> None:
    call = _Call(getattr, _MEM_FORMAT_ENCODING, "mro")
    (checkpoint / ".metadata").write_bytes(pickle.dumps(call))
    with pytest.raises(DamagedCheckpointError, match="is damaged: 'mro'"):
        SafeReader(checkpoint).read_metadata()


def test_objects_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    dcp.save({"a": {1, 2}}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(DamagedCheckpointError, match=r"it names .*BytesStorageMetadata"):
        SafeReader(tmp_path).read_metadata()


@pytest.mark.parametrize("name", ["../other.distcp", "/etc/passwd"])
def test_files_elsewhere_are_refused(checkpoint: Path, name: str) -> None:
    found = index(checkpoint)
    for place in found.storage_data.values():
        place.relative_path = name
    (checkpoint / ".metadata").write_bytes(pickle.dumps(found))
    with pytest.raises(DamagedCheckpointError, match="which is no file of a checkpoint"):
        SafeReader(checkpoint).read_metadata()


@pytest.mark.parametrize("size", [0, 1, 100, 500])
def test_a_truncated_index_is_damaged(checkpoint: Path, size: int) -> None:
    os.truncate(checkpoint / ".metadata", size)
    with pytest.raises(DamagedCheckpointError, match=r"\.metadata: is damaged"):
        SafeReader(checkpoint).read_metadata()
