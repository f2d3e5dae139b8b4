"""The layers that come with the package: configs/ of a checkout, package data of a wheel."""

import difflib
from collections.abc import Iterable
from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "configs"
"""A link to configs/ in a checkout."""

QUICKSTART = SHIPPED / "quickstart.toml"
"""What is trained and shown where no layer is named."""

_NAME = "configs"


def find_shipped(path: Path) -> Path:
    """The path itself, or, where nothing is there, what has this name among the shipped files.

    `configs/data/trivago.toml` and `data/trivago.toml` are found from any working directory.
    """
    return path if is_there(path) else _among_shipped(path) or path


def find_beside(folder: Path, name: str) -> Path:
    """A layer that a file of a folder names: from there, else one that comes with the package."""
    beside = folder / name
    return beside if is_there(beside) else _among_shipped(Path(name)) or beside


def _among_shipped(path: Path) -> Path | None:
    if path.is_absolute() or ".." in path.parts:
        return None
    shipped = SHIPPED.joinpath(*path.parts[path.parts[:1] == (_NAME,) :])
    return shipped if is_there(shipped) else None


def is_there(path: Path) -> bool:
    """Whether there is something of this name; nothing is where no file can have it."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def similar_layers(path: Path) -> str:
    """What a layer that does not exist may have been meant to be, in words behind its name."""
    shipped = [
        f"{_NAME}/{layer.relative_to(SHIPPED)}"
        for layer in sorted(SHIPPED.rglob("*.toml"))
        if layer.name != "schema.toml"
    ]
    folders = {Path(layer).parent.name for layer in shipped}
    # Elsewhere a file of one's own was meant, unless it has the very name of one of these.
    in_folder = not path.is_absolute() and path.parent.name in {"", *folders}
    beside = map(str, sorted(path.parent.glob("*.toml")))
    for layers, alike in ((beside, True), (shipped, in_folder)):
        if close := _close(path.stem, layers, alike=alike):
            return f" (did you mean {_listed(close)}?)"
    if not in_folder:
        return ""
    return f" (layers that come with the package: {', '.join(_folders(shipped))})"


def _close(stem: str, layers: Iterable[str], *, alike: bool) -> list[str]:
    """Layers with this name, or else, where that may be meant, with names like it."""
    by_stem: dict[str, list[str]] = {}
    for layer in layers:
        by_stem.setdefault(Path(layer).stem, []).append(layer)
    names = [stem] if stem in by_stem else []
    if alike and not names:
        names = difflib.get_close_matches(stem, by_stem, n=3)
    return [layer for name in names for layer in by_stem[name]]


def _listed(layers: list[str]) -> str:
    *others, last = [f"'{layer}'" for layer in layers]
    return f"{', '.join(others)} or {last}" if others else last


def _folders(layers: Iterable[str]) -> list[str]:
    """The layers of each folder together: configs/data/{ebnerd, trivago}.toml."""
    folders: dict[Path, list[str]] = {}
    for layer in map(Path, layers):
        folders.setdefault(layer.parent, []).append(layer.stem)
    return [
        f"{folder}/{names[0] if len(names) == 1 else '{' + ','.join(names) + '}'}.toml"
        for folder, names in folders.items()
    ]
