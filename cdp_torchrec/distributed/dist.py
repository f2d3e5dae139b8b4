# TorchX parses a component's source and understands typing's Optional, Dict and List only.
# ruff: noqa: UP006, UP035, UP045
"""The TorchX component behind `torchx run dist.ddp -j 1x4 launch/train.py`.

Registered as entry point `dist` of the group `torchx.components`, it takes the place of TorchX's
own `dist.ddp`, accepts everything that that one accepts, and the script as a positional argument.
"""

import argparse
import itertools
import os
import shlex
import sys
from pathlib import Path
from typing import Dict, List, Optional

import torchx
from torchx.components import dist as stock
from torchx.runner.config import get_config
from torchx.schedulers import get_default_scheduler_name
from torchx.specs import AppDef
from torchx.specs.finder import ComponentValidationException

from cdp_torchrec.distributed.launcher import run_with_parent


def ddp(
    *script_args: str,
    script: Optional[str] = None,
    m: Optional[str] = None,
    image: str = torchx.IMAGE,
    name: str = "/",
    h: Optional[str] = None,
    cpu: int = 4,
    gpu: int = 0,
    memMB: int = 16384,
    j: str = "1x2",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
    rdzv_backend: str = "c10d",
    mounts: Optional[List[str]] = None,
    debug: bool = False,
    tee: int = 3,
) -> AppDef:
    """Ranks of one script on one or more nodes: dist.ddp -j 1x4 launch/train.py key=value.

    Restarts of failed ranks: --max_retries 2.

    Args:
        script_args: the script (a path ending in .py) and its arguments
        script: the script, as an option instead of a positional argument
        m: a python module to run instead of a script
        image: image of the job (for schedulers that run containers)
        name: job name as {experimentname}/{runname}; the script's name if {runname} is left out
        h: a registered named resource; takes precedence over cpu, gpu and memMB
        cpu: cpus per node
        gpu: gpus per node
        memMB: memory per node, in MB
        j: [{min_nnodes}:]{nnodes}x{nproc_per_node}
        env: environment variables of the ranks (e.g. ENV1=v1,ENV2=v2)
        max_retries: how often failed ranks are restarted; a scheduler that can restarts the whole
            job as often
        rdzv_port: port on the first node for the rendezvous of several nodes
        rdzv_backend: rendezvous backend of several nodes
        mounts: mounts into the container (e.g. type=bind,src=/host,dst=/job[,readonly])
        debug: whether to set torch's debug flags
        tee: streams of the ranks on the console: 0 none, 1 stdout, 2 stderr, 3 both

    Returns:
        The job definition.

    Raises:
        ComponentValidationException: no script, or a scheduler that is not here; TorchX shows its
            message alone.
    """
    arguments = list(script_args)
    if script is None and m is None:
        if not arguments or not arguments[0].endswith(".py"):
            found = f"found {arguments[0]!r}" if arguments else "found nothing"
            raise ComponentValidationException(
                f"dist.ddp needs a script ending in .py, {found}: "
                "torchx run dist.ddp -j 1x4 launch/train.py (or --script PATH, or -m MODULE)"
            )
        script = arguments.pop(0)
        if arguments[:1] == ["--"]:
            arguments.pop(0)
    scheduler = _scheduler()
    _prefer_this_installation()
    job = stock.ddp(
        *arguments,
        script=script,
        m=m,
        image=image,
        name=name,
        h=h,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        j=j,
        env=_with_defaults(env or {}, max_retries, nodes_may_change=":" in j),
        max_retries=max_retries,
        rdzv_port=rdzv_port,
        rdzv_backend=rdzv_backend,
        mounts=mounts,
        debug=debug,
        tee=tee,
    )
    if scheduler == "local_cwd":
        _end_with_torchx(job)
    return job


def _with_defaults(env: Dict[str, str], max_retries: int, nodes_may_change: bool) -> Dict[str, str]:
    """A log that shows the ranks' own lines, and restarts that find each other."""
    # torchrun warns of its own defaults; its errors stay visible.
    env.setdefault("LOGLEVEL", os.environ.get("LOGLEVEL", "ERROR"))
    # Every refresh of a progress bar becomes a line of the job's log.
    env.setdefault("TQDM_MININTERVAL", "5")
    # From SIGTERM to SIGKILL, for a checkpoint; a scheduler may be less patient.
    env.setdefault("PET_SHUTDOWN_TIMEOUT", "120")
    if max_retries:
        # No local scheduler retries; torchrun does.
        env.setdefault("PET_MAX_RESTARTS", str(max_retries))
    if "PET_MAX_RESTARTS" in env or nodes_may_change:
        # A restart that reuses the first attempt's store reads stale addresses (torch 2.13).
        env.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    return env


def _scheduler() -> Optional[str]:
    """The scheduler of this `torchx run`; None where something else asks for the job.

    Raises:
        ComponentValidationException: it would be Docker by default, and there is none.
    """
    command = sys.argv[1:]
    if command[:1] != ["run"]:
        return None
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-s", "--scheduler")
    before = itertools.takewhile(lambda word: word != "dist.ddp", command)
    named = parser.parse_known_args(list(before))[0].scheduler
    chosen = named or get_config(prefix="cli", name="run", key="scheduler")
    if chosen is not None:
        return chosen
    docker = "DOCKER_HOST" in os.environ or Path("/var/run/docker.sock").exists()
    default = get_default_scheduler_name()
    if default == "local_docker" and not docker:
        raise ComponentValidationException(
            "no .torchxconfig here names a scheduler, and TorchX's default, Docker, is not "
            "installed: torchx run -s local_cwd dist.ddp ... starts the ranks on this machine"
        )
    return default


def _end_with_torchx(job: AppDef) -> None:
    """Let torchrun end when this process does, even by SIGKILL; it stands apart in a session."""
    for role in job.roles:
        option, line = role.args
        launcher = f"{shlex.quote(sys.executable)} -m {run_with_parent.__module__} {os.getpid()}"
        role.args = [option, f"exec {launcher} {line}"]


def _prefer_this_installation() -> None:
    """Let local jobs find the `torchrun` beside this interpreter, activated or not."""
    scripts = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "").split(os.pathsep)
    if path[0] != scripts:
        os.environ["PATH"] = os.pathsep.join([scripts, *path])
