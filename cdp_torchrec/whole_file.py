"""Files that are whole whenever they are there."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file, or replace one, by one rename."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.rename(path)
