"""Damage to a file, as disks, full disks and hands do it."""

from pathlib import Path
from random import Random


def damage_one(directory: Path, random: Random, pattern: str = "**/*") -> str:
    """Damage a random file; files are drawn alike, whatever their size.

    Args:
        directory: where.
        random: decides which, how and where in it.
        pattern: of the files.

    Returns:
        What was done, in words.
    """
    files = sorted(p for p in directory.glob(pattern) if p.is_file() and p.stat().st_size)
    path = random.choice(files)
    content = bytearray(path.read_bytes())
    place = random.randrange(len(content))
    kind = random.choice(["cut", "flip", "delete", "zeros", "append", "swap"])
    match kind:
        case "cut":
            del content[place:]
        case "flip":
            content[place] ^= 1 << random.randrange(8)
        case "zeros":
            content[place : place + 512] = bytes(len(content[place : place + 512]))
        case "append":
            content += random.randbytes(random.randint(1, 64))
        case "swap":
            half = len(content) // 2
            content = content[half:] + content[:half]
    path.unlink()
    if kind != "delete":
        path.write_bytes(content)
    return f"{kind} {path.relative_to(directory)} at {place}"
