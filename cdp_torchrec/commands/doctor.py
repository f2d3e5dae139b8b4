"""Report what is installed and whether it fits together.

    cdp_torchrec doctor

Exit code 0: everything fits together; 1: there are problems, each on a line that begins with
PROBLEM. Hints are about what works and is probably not meant.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from cdp_torchrec.distributed.launcher_variables import launcher_mistake
from cdp_torchrec.environment import (
    describe_environment,
    find_mismatches,
    installed_version,
    quiet_libraries,
    torch_has_cuda,
)
from cdp_torchrec.standard_streams import give_up, prepare_streams

COMPONENT = "cdp_torchrec.distributed.dist"
MIN_SHARED_MEMORY_GIB = 1.0


def main(arguments: list[str]) -> None:
    """Print the report, and end with its exit code."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    if arguments:
        sys.exit(f"error: cdp_torchrec doctor takes no arguments, found {arguments}")
    prepare_streams()
    try:
        code = diagnose()
        sys.stdout.flush()
    except OSError as error:  # of the report: what a library raises is a problem in it
        give_up(sys.stdout)
        sys.exit(f"error: the report cannot be written: {error.strerror}")
    sys.exit(code)


def diagnose() -> int:
    """Print the report; 0: everything fits, 1: there are problems."""
    quiet_libraries()
    problems = find_mismatches()
    if not problems:
        problems = [*import_problems(), *launch_problems()]
    if installed_version("torch"):
        print_report()
    for hint in hints():
        print(f"hint: {hint}")
    for problem in problems:
        print(f"PROBLEM: {problem}")
    print(f"{len(problems)} problem(s) found" if problems else "everything fits together")
    return 1 if problems else 0


def print_report() -> None:
    """One aligned line per fact, the versions last."""
    facts = describe_environment()
    versions = facts.pop("versions")
    rows = [*facts.items(), *versions.items()]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        shown = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:<{width}}  {shown or '-'}")


def import_problems() -> Iterator[str]:
    """Libraries that the metadata calls right and that still do not load."""
    for module in ("torch", "fbgemm_gpu", "torchrec", "torchx"):
        try:
            import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            yield f"import {module} fails: {type(error).__name__}: {error}"


def launch_problems() -> Iterator[str]:
    """What keeps `torchx run dist.ddp -j 1x4 launch/train.py` from working as typed."""
    components = {entry.name: entry.value for entry in entry_points(group="torchx.components")}
    if components.get("dist") != COMPONENT:
        yield (
            f"TorchX component dist: found {components.get('dist', 'none')}, expected {COMPONENT}; "
            "install this package (make install, or pip install --no-deps -e .)"
        )
    if not (Path(sys.executable).parent / "torchrun").exists():
        yield f"torchrun is not installed beside {sys.executable}"
    if mistake := launcher_mistake():
        yield mistake


def hints() -> Iterator[str]:
    """Things that work but are probably not meant."""
    if shutil.which("nvidia-smi") and not torch_has_cuda():
        yield "nvidia-smi is here but torch is a CPU build; make clean install DEVICE=cuda"
    compiler = shlex.split(os.environ.get("CXX") or "g++")[0]
    if not shutil.which(compiler):
        yield f"no C++ compiler {compiler} (CXX) is here: export and model.compile need one"
    if not (Path.cwd() / ".torchxconfig").exists():
        yield (
            "no .torchxconfig here: TorchX takes its own default scheduler; run in the checkout, "
            "or torchx run -s local_cwd"
        )
    shared = Path("/dev/shm")
    if shared.exists() and shutil.disk_usage(shared).total < MIN_SHARED_MEMORY_GIB * 2**30:
        yield "/dev/shm is under 1 GiB: reader workers pass batches through it"


if __name__ == "__main__":
    main(sys.argv[1:])
