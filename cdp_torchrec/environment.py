"""Which libraries this installation holds, and whether they fit together.

torch, torchrec and fbgemm-gpu share a binary interface. A mismatch shows itself as an undefined
symbol or a missing shared object deep inside an import, so it is looked up in the metadata of the
installed distributions before any of them is imported.
"""

import functools
import importlib.metadata as metadata
import logging
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from cdp_torchrec import __version__
from cdp_torchrec.known_versions import (
    Triple,
    describe_triples,
    fits_version,
    nearest_triple,
)
from cdp_torchrec.user_error import UserError

FBGEMM_DISTRIBUTIONS = (
    "fbgemm-gpu",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu-nightly",
    "fbgemm-gpu-nightly-cpu",
)
"""Distributions that install the same package `fbgemm_gpu`, each over the others."""

_HARMLESS_ROOT_LOGS = (
    # One rank without a launcher: the fall-back that is announced is the right one.
    "Could not determine LOCAL_WORLD_SIZE from environment",
    # FBGEMM 1.6 and 1.7 do not know themselves; known_versions.py does.
    "_fbgemm_torch_compat_table has no entry for",
)

_HARMLESS_WARNINGS = (
    # Blamed on whoever touches a table, though TorchRec chose the class.
    "Please use DTensor instead",
    # FBGEMM's tables without a fused optimizer; their gradients are tested against a reference.
    "fbgemm::dense_embedding_codegen_lookup_function: an autograd kernel was not registered",
    # Said by the compiler of exported models about its own tensors.
    "TypedStorage is deprecated",
)


class EnvironmentMismatchError(UserError, RuntimeError):
    """The installed libraries do not fit together; the message says how to fix it."""


def check_environment() -> None:
    """Make sure that torch, torchrec and exactly one fbgemm fit together. Imports none of them.

    Raises:
        EnvironmentMismatchError: they are none of the known triples, or built for another device;
            the message lists everything found, expected and allowed, and the command of repair.
    """
    problems = find_mismatches()
    if problems:
        raise EnvironmentMismatchError(
            "the installed libraries do not fit together:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
            + f"\nKnown to fit, each in any of its patch releases:\n{describe_triples()}"
            + f"\nRepair it with `make clean install` in the checkout, or by hand:\n"
            f"  {_repair_command()}"
        )


def find_mismatches() -> list[str]:
    """One sentence per library that is missing, of another version or for another device."""
    expected = _expected_triple().versions()
    problems = []
    for name in ("torch", "torchrec"):
        found = installed_version(name)
        if not fits_version(found, expected[name]):
            problems.append(f"{name}: found {found or 'none'}, expected {expected[name]}")

    fbgemm = installed_fbgemm()
    if len(fbgemm) != 1:
        found = " and ".join(f"{name} {version}" for name, version in fbgemm.items()) or "none"
        problems.append(
            f"fbgemm: found {found}, expected exactly one of fbgemm-gpu and fbgemm-gpu-cpu "
            "(both write the package fbgemm_gpu)"
        )
        return problems

    [(name, version)] = fbgemm.items()
    if not fits_version(version, expected["fbgemm"]):
        problems.append(f"fbgemm: found {name} {version}, expected {expected['fbgemm']}")
    if not _is_cpu_build(name, version) and not torch_has_cuda():
        problems.append(
            f"fbgemm: found {name} {version}, a CUDA build, beside the CPU build of torch "
            f"{installed_version('torch') or ''}".rstrip()
        )
    if _is_cpu_build(name, version) and torch_has_cuda() and _cuda_devices():
        problems.append(
            f"fbgemm: found {name} {version}, a CPU build, beside the CUDA build of torch "
            f"{installed_version('torch') or ''} on a machine with a GPU"
        )
    return problems


def _expected_triple() -> Triple:
    """The known triple that is nearest to what is installed."""
    fbgemm = installed_fbgemm()
    return nearest_triple(
        {
            "torch": installed_version("torch"),
            "torchrec": installed_version("torchrec"),
            "fbgemm": next(iter(fbgemm.values())) if len(fbgemm) == 1 else None,
        }
    )


def installed_version(name: str) -> str | None:
    """Version of an installed distribution; None: not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def installed_fbgemm() -> dict[str, str]:
    """Every installed distribution of the package `fbgemm_gpu`, with its version."""
    versions = {name: installed_version(name) for name in FBGEMM_DISTRIBUTIONS}
    return {name: version for name, version in versions.items() if version is not None}


def torch_has_cuda() -> bool:
    """Whether the installed torch is a CUDA build: it ships the library that fbgemm-gpu needs."""
    try:
        library = metadata.distribution("torch").locate_file("torch/lib/libtorch_cuda.so")
    except metadata.PackageNotFoundError:
        return False
    return Path(str(library)).exists()


def describe_environment() -> dict[str, Any]:
    """What a result depends on besides the configuration; written into the run directory."""
    import torch  # on use: the check above must not import it

    names = ("torch", "torchrec", "torchx", "tensordict", "numpy", "pyarrow", "pydantic")
    return {
        "cdp_torchrec": installed_version("cdp_torchrec"),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": platform.node(),
        "num_cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "versions": {name: installed_version(name) for name in names} | installed_fbgemm(),
    }


@functools.cache
def release() -> str:
    """Version of this package, and its commit in a checkout, as checkpoints record it."""
    commit = git_commit()
    return f"{__version__} (commit {commit})" if commit else __version__


def git_commit() -> str | None:
    """Commit of this package's checkout, with `-dirty` if changed; None: not in a checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def quiet_libraries() -> None:
    """Silence what the libraries say on every correct run, and nothing else."""
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    # The one warning that matters: a lookup fell out of the pipeline.
    logging.getLogger("torchrec.distributed.train_pipeline").setLevel(logging.WARNING)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    logging.getLogger().addFilter(_is_worth_reading)
    for category in (FutureWarning, DeprecationWarning):
        for module in ("torch", "torchrec", "fbgemm_gpu", "tensordict"):
            warnings.filterwarnings("ignore", category=category, module=rf"{module}(\.|$)")
    for message in _HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # DDP says that it found no unused parameters; it is asked to look for them, because only then
    # does it keep its buckets, and a resumed run its last bit. Read when torch is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # The profiler that counts operators says when it starts and stops; 6 is above all it says.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    # A rank among several ends at once, or is killed, and leaves the semaphores of its loader
    # workers to Python's resource tracker: that removes them, and warns of it. Its interpreter is
    # started with these options.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")


def _is_worth_reading(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _HARMLESS_ROOT_LOGS)


def _is_cpu_build(fbgemm: str, version: str) -> bool:
    return fbgemm.endswith("-cpu") or version.endswith("+cpu")


def _cuda_devices() -> bool:
    return Path("/dev/nvidia0").exists()


def _repair_command() -> str:
    expected = _expected_triple()
    pins = expected.requirements("fbgemm-gpu" if torch_has_cuda() else "fbgemm-gpu-cpu")
    commands = [f"pip uninstall -y {' '.join(installed_fbgemm())}"] if installed_fbgemm() else []
    if not fits_version(installed_version("torch"), expected.torch):
        commands.append(f"pip install {pins['torch']}")
    commands.append(f"pip install --no-deps {pins['torchrec']} {pins['fbgemm']}")
    return " && ".join(commands)
