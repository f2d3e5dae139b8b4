"""A checkpoint that is written behind the training is that of its moment, whole or not there."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed.checkpoint as dcp

from cdp_torchrec.run.checksums import record_file
from cdp_torchrec.run.config import CheckpointMode
from cdp_torchrec.run.metadata import SafeReader
from cdp_torchrec.run.records import CheckpointError, FileRecord
from cdp_torchrec.run.writer import CheckpointWriter
from cdp_torchrec.whole_file import write_whole
from tests.largest_file import largest_file

pytestmark = pytest.mark.usefixtures("one_rank")

WHOLE_SAVE = dcp.save


def text_files(records: Mapping[str, FileRecord]) -> dict[str, str]:
    return {"records": repr(sorted(records.items()))}


def nothing() -> None: ...


def written(checkpoint: Path) -> torch.Tensor:
    state = {"a": torch.zeros(3)}
    dcp.load(state, storage_reader=SafeReader(checkpoint))
    return state["a"]


class Held:
    """dcp.save, which waits for a permission."""

    def __init__(self) -> None:
        self.permission = threading.Event()

    def __call__(self, *arguments: Any, **options: Any) -> None:
        assert self.permission.wait(60)
        WHOLE_SAVE(*arguments, **options)


def test_the_training_goes_on_and_changes_nothing_of_what_is_written(tmp_path: Path) -> None:
    writer, tensor, done = CheckpointWriter("background"), torch.arange(3.0), []
    for step in (1, 2):  # the second one into the copies of the first
        held = Held()
        with mock.patch.object(dcp, "save", held):
            final = tmp_path / f"step-{step}"
            before = tensor.clone()
            writer.write(final, {"a": tensor}, text_files, lambda final=final: done.append(final))
            tensor += 1
            assert not final.exists()
            held.permission.set()
            writer.finish()
        assert torch.equal(written(final), before)
    assert done == [tmp_path / "step-1", tmp_path / "step-2"]


def test_one_is_in_flight_at_most(tmp_path: Path) -> None:
    writer, held, order = CheckpointWriter("background"), Held(), []
    with mock.patch.object(dcp, "save", held):
        writer.write(tmp_path / "step-1", {"a": torch.ones(3)}, text_files, nothing)

        def allow() -> None:
            order.append("allowed")
            held.permission.set()

        threading.Timer(0.2, allow).start()
        writer.write(tmp_path / "step-2", {"a": torch.ones(3)}, text_files, nothing)
        order.append("begun")
        writer.finish()
    assert order == ["allowed", "begun"]


@pytest.mark.parametrize("mode", ["background", "blocking"])
def test_what_cannot_be_written_is_said_once_and_leaves_nothing(
    tmp_path: Path, mode: CheckpointMode
) -> None:
    writer, final = CheckpointWriter(mode), tmp_path / "step-1"
    with (
        mock.patch.object(dcp, "save", side_effect=OSError("no space")),
        pytest.raises(CheckpointError, match="step-1: cannot write the checkpoint: no space"),
    ):
        writer.write(final, {"a": torch.ones(3)}, text_files, nothing)
        writer.finish()
    writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_half_written_is_removed_by_the_next_checkpoint(
    tmp_path: Path,
) -> None:
    write_whole(tmp_path / ".step-1.partial-0a1b2c3d" / "__0_0.distcp", b"half")
    writer, final = CheckpointWriter("blocking"), tmp_path / "step-2"
    writer.write(final, {"a": torch.ones(3)}, text_files, nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


def test_a_disk_that_takes_no_more_is_said_wherever_it_happens(tmp_path: Path) -> None:
    tensors = {name: torch.ones(size) for name, size in (("a", 1_000), ("b", 50_000))}
    # In the first tensor, behind it, in the second one, and almost at the end.
    for num_bytes in (0, 100, 5_000, 100_000, 200_000):
        with (
            largest_file(num_bytes),
            pytest.raises(CheckpointError, match=r"checkpoint: rank 0: .*File too large$"),
        ):
            CheckpointWriter("blocking").write(tmp_path / "step-1", tensors, text_files, nothing)
        assert list(tmp_path.iterdir()) == []


def test_what_follows_waits_for_the_checkpoint_and_is_waited_for(tmp_path: Path) -> None:
    writer, held, final = CheckpointWriter("background"), Held(), tmp_path / "step-1"
    with mock.patch.object(dcp, "save", held):
        writer.write(final, {"a": torch.ones(3)}, text_files, nothing)
        writer.follow(final, (final / "more").touch)
        assert not final.exists()
        held.permission.set()
        writer.finish()
    assert (final / "more").exists()


def test_nothing_follows_a_checkpoint_that_could_not_be_written(tmp_path: Path) -> None:
    writer, final = CheckpointWriter("background"), tmp_path / "step-1"
    followed = mock.Mock()
    with mock.patch.object(dcp, "save", side_effect=OSError("no space")):
        writer.write(final, {"a": torch.ones(3)}, text_files, nothing)
        writer.follow(final, followed)
        with pytest.raises(CheckpointError, match="step-1: cannot write the checkpoint: no space"):
            writer.finish()
    followed.assert_not_called()
    with pytest.raises(
        CheckpointError, match="step-1: cannot write the checkpoint: rank 0: read-only"
    ):
        CheckpointWriter("blocking").follow(final, mock.Mock(side_effect=OSError("read-only")))


def test_the_records_are_of_the_files_that_are_there(tmp_path: Path) -> None:
    writer, final = CheckpointWriter("blocking"), tmp_path / "step-1"
    writer.write(final, {"a": torch.ones(3)}, text_files, nothing)
    records = {p.name: record_file(p) for p in final.iterdir() if p.name != "records"}
    assert set(records) == {".metadata", "__0_0.distcp"}
    assert (final / "records").read_text() == repr(sorted(records.items()))


def test_both_modes_write_the_same_tensors(tmp_path: Path) -> None:
    digests = []
    modes: tuple[CheckpointMode, ...] = ("background", "blocking")
    for mode in modes:
        writer, final = CheckpointWriter(mode), tmp_path / mode
        state = {"a": torch.arange(6.0).view(3, 2).t(), "b": torch.ones(4)[1:3]}
        writer.write(final, state, text_files, nothing)
        writer.finish()
        digests.append(record_file(final / "__0_0.distcp"))
    assert digests[0] == digests[1]
