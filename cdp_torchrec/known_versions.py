"""The triples of torch, torchrec and fbgemm-gpu that fit together; their one home.

    python cdp_torchrec/known_versions.py SERIES cpu|cuda    # prints: torch==... torchrec==... ...

The three share a binary interface, which a minor version keeps: any patch of it will do. `make
install` asks here what to install, and the check at start-up what it may find. Imports nothing of
the package, so that it also runs before anything is installed.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Triple:
    """Versions that were seen to work together."""

    torch: str
    torchrec: str
    fbgemm: str

    @property
    def series(self) -> str:
        """Minor version of torch, by which a triple is asked for: 2.13."""
        return minor(self.torch)

    def versions(self) -> dict[str, str]:
        """Version of each of the three libraries."""
        return {"torch": self.torch, "torchrec": self.torchrec, "fbgemm": self.fbgemm}

    def requirements(self, fbgemm: str) -> dict[str, str]:
        """What pip is asked for, where the distribution of fbgemm has this name."""
        names = {"torch": "torch", "torchrec": "torchrec", "fbgemm": fbgemm}
        return {name: f"{names[name]}=={version}" for name, version in self.versions().items()}


KNOWN_TRIPLES = (
    Triple(torch="2.11.0", torchrec="1.6.1", fbgemm="1.6.0"),
    Triple(torch="2.12.1", torchrec="1.7.0", fbgemm="1.7.0"),
    Triple(torch="2.13.0", torchrec="1.8.0", fbgemm="1.8.0"),
    Triple(torch="2.14.1", torchrec="1.9.2", fbgemm="1.9.0"),
)
"""From the oldest to the newest; the range in pyproject.toml spans them."""


def nearest_triple(found: Mapping[str, str | None]) -> Triple:
    """The triple that most of what is found belongs to; among equals the one of torch found.

    Args:
        found: version of "torch", "torchrec" and "fbgemm"; None: not installed.
    """

    def agreement(triple: Triple) -> tuple[int, bool, str]:
        fits = [fits_version(found[name], wanted) for name, wanted in triple.versions().items()]
        return sum(fits), fits[0], triple.series

    return max(KNOWN_TRIPLES, key=agreement)


def fits_version(found: str | None, wanted: str) -> bool:
    """Whether an installed version is a patch of the same minor version; 2.13.0+cpu fits 2.13.1."""
    return found is not None and minor(found) == minor(wanted)


def minor(version: str) -> str:
    """Major and minor version: 2.13 of 2.13.0+cpu."""
    return ".".join(version.split("+")[0].split(".")[:2])


def describe_triples() -> str:
    """One line for each known triple."""
    return "\n".join(
        "  " + "  ".join(f"{name} {version}" for name, version in triple.versions().items())
        for triple in KNOWN_TRIPLES
    )


def main(arguments: list[str]) -> None:
    """Print what pip is asked for, one requirement after another."""
    series, device = arguments
    for triple in KNOWN_TRIPLES:
        if triple.series == series:
            fbgemm = "fbgemm-gpu-cpu" if device == "cpu" else "fbgemm-gpu"
            print(*triple.requirements(fbgemm).values())
            return
    known = ", ".join(triple.series for triple in KNOWN_TRIPLES)
    sys.exit(f"error: torch {series}: known are {known}")


if __name__ == "__main__":
    main(sys.argv[1:])
