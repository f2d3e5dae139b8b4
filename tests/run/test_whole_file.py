"""What is written is whole, or it is not there; what was there stays."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from cdp_torchrec.whole_file import (
    remove_leftovers,
    remove_leftovers_of,
    whole_directory,
    whole_file,
    why_unwritable,
    write_json,
    write_whole,
)
from tests.largest_file import largest_file


@pytest.mark.parametrize(("content", "bytes_"), [("text", b"text"), (b"\x00\xff", b"\x00\xff")])
def test_text_and_bytes_replace_a_file_and_make_the_directories_around_it(
    tmp_path: Path, content: str | bytes, bytes_: bytes
) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_whole(path, "old")
    write_whole(path, content)
    assert path.read_bytes() == bytes_
    assert list(path.parent.iterdir()) == [path]


def test_json_is_what_json_reads(tmp_path: Path) -> None:
    write_json(tmp_path / "numbers.json", {"a": [1, None]})
    assert (tmp_path / "numbers.json").read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}'


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_with_what_does_not_fit_on_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(8192))
    with largest_file(4096), pytest.raises(OSError, match=r"large: '[^']*/page\.html'"):
        write_whole(tmp_path / "page.html", "x" * 8192)
    with (
        largest_file(4096),
        pytest.raises(OSError, match=r"large: '[^']*/copy'"),
        whole_directory(tmp_path / "copy") as partial,
    ):
        shutil.copyfile(source, partial / "file")
    assert list(tmp_path.iterdir()) == [source]


def test_a_full_disk_that_is_another_one_keeps_its_name(tmp_path: Path) -> None:
    elsewhere = tmp_path / "temporary" / "file"
    with (
        pytest.raises(OSError, match=r"'[^']*/temporary/file'"),
        whole_directory(tmp_path / "made" / "directory"),
        whole_file(elsewhere),
    ):
        raise OSError(errno.ENOSPC, "in the words of a library")
    assert list((tmp_path / "made").iterdir()) == list(elsewhere.parent.iterdir()) == []


def test_a_file_that_cannot_be_made_is_named_as_what_it_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is mounted for reading: nobody knows the name under which it is written."""

    def read_only(name: Path, *_: int) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(name))

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OSError, match=f"Read-only file system: '{tmp_path}/file'"):
        write_whole(tmp_path / "file", "text")


def test_two_writers_of_one_file_do_not_share_what_they_write(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path) as one, whole_file(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # the first context ends last
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_appears_with_all_that_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "around" / "directory"
    with whole_directory(path) as partial:
        assert partial.parent == path.parent  # on the same disk
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text("text")
        assert not path.exists()
    assert (path / "inner" / "file").read_text() == "text"
    assert list(path.parent.iterdir()) == [path]
    assert oct(path.stat().st_mode) == oct((tmp_path / "around").stat().st_mode)


def test_a_directory_vanishes_on_an_error_and_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "directory"
    with pytest.raises(ValueError, match="wrong"), whole_directory(path) as partial:
        (partial / "file").write_text("half")
        raise ValueError("wrong")
    assert list(tmp_path.iterdir()) == []
    write_whole(path / "file", "old")
    said = f"another process has made it meanwhile, and it stays as it is: '{path}'$"
    with pytest.raises(FileExistsError, match=said), whole_directory(path) as partial:
        (partial / "file").write_text("new")
    assert (path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    path = tmp_path / "directory"

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        synced.append((name, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_directory(path) as partial:
        (partial / "file").write_text("text")
        made = partial.name
    assert synced == [("file", False), (made, False), (tmp_path.name, True)]


def test_leftovers_are_those_of_one_path_whatever_its_name(tmp_path: Path) -> None:
    """Fails where the name is taken as a pattern: [1] matches 1, and not itself."""
    for name in ("scores[1].csv", "scores1.csv"):
        (tmp_path / f".{name}.partial-12ab34cd").touch()
    remove_leftovers_of(tmp_path / "scores[1].csv")
    assert [path.name for path in tmp_path.iterdir()] == [".scores1.csv.partial-12ab34cd"]


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path) -> None:
    names = [".step-1.partial-00", ".step-2.partial-01", ".other.partial-02", "step-1"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".step-3.partial-04").touch()
    remove_leftovers(tmp_path, "step-*")
    assert {path.name for path in tmp_path.iterdir()} == {".other.partial-02", "step-1"}


def test_what_another_process_writes_at_the_moment_is_no_leftover(tmp_path: Path) -> None:
    """Fails where an export removes the half-made artifact of another one of the same output."""
    page, folder = tmp_path / "page", tmp_path / "folder"
    with whole_file(page) as file, whole_directory(folder) as directory:
        for path in (page, folder):
            remove_leftovers_of(path)
        file.write_text("all of it")
        (directory / "file").touch()
    assert page.read_text() == "all of it"
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    assert why_unwritable(tmp_path / "new" / "directory") is None
    write_whole(tmp_path / "file", "")
    assert why_unwritable(tmp_path / "file" / "x") == (
        f"{tmp_path / 'file'} is not a writable directory"
    )
    (tmp_path / "link").symlink_to(tmp_path / "not mounted")
    for path in (tmp_path / "link", tmp_path / "link" / "x"):
        assert why_unwritable(path) == f"{tmp_path / 'link'} is a link to nothing"


def test_what_is_no_file_keeps_its_place(tmp_path: Path) -> None:
    """Renaming over /dev/null would leave the machine without one."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match=r"is no regular file.*pipe"):
        write_whole(tmp_path / "pipe", "text")
    assert [*tmp_path.iterdir()] == [tmp_path / "pipe"]
    assert not (tmp_path / "pipe").is_file()
