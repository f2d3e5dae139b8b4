"""How every launch script starts, joins its ranks, and fails.

A script ends with

    if __name__ == "__main__":
        run_main(main)

torch is imported on use, so that scripts without ranks start at once and the installed libraries
are checked before the first of them is imported. For the same reason `main` imports what needs
TorchRec in its own body.
"""

import atexit
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.config import RanksConfig
from cdp_torchrec.distributed.failure import (
    MACHINE_ERRORS,
    describe,
    lost_peer,
    record_for_launcher,
)
from cdp_torchrec.distributed.heartbeat import Heartbeat, LostRank
from cdp_torchrec.distributed.interruption import Interrupted, Interruption
from cdp_torchrec.distributed.launcher import kill_with_launcher
from cdp_torchrec.distributed.launcher_variables import launcher_mistake
from cdp_torchrec.distributed.stopped import StopWatch
from cdp_torchrec.environment import check_environment, quiet_libraries
from cdp_torchrec.progress import date_logs
from cdp_torchrec.standard_streams import flush_streams, prepare_streams
from cdp_torchrec.user_error import UserError

if TYPE_CHECKING:
    import torch
    from torch import distributed as dist

logger = logging.getLogger(__name__)

_SAME_ERROR_GRACE_S = 1.0
"""Head start of rank 0: the launcher stops the rest, so an error of all ranks is shown once."""
_PEER_LOST_GRACE_S = 10.0
"""How long a rank that only lost a peer waits to be stopped before it reports that itself."""

_MOST_NAMES = 8
"""Of ranks in a message."""


class JoinError(UserError, RuntimeError):
    """A rank waited in vain for the others at the start of a job."""


def rank() -> int:
    """Rank of this process in the job; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of ranks of the job; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_rank_zero() -> bool:
    """Whether this process speaks and writes for the job."""
    return rank() == 0


_heartbeat: Heartbeat | None = None
"""Of the ranks that this process has joined."""
_stop_watch: StopWatch | None = None
"""Of a rank that has a launcher."""
_is_done = False
"""Whether the script has done its work and this process has left its ranks."""


def init_process_group(config: RanksConfig | None = None) -> "torch.device":
    """Join the job's ranks and choose this rank's device.

    One GPU per rank of this node: CUDA and NCCL; otherwise CPU and gloo. Works under torchrun and
    TorchX and, as one rank, without any launcher.

    Args:
        config: how long the ranks wait for one another; None: the defaults.

    Returns:
        This rank's device, already made current.

    Raises:
        JoinError: another rank did not come.
    """
    import torch
    from torch import distributed as dist

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    num_gpus = torch.cuda.device_count()
    device = (
        torch.device("cuda", local_rank) if num_gpus >= local_world_size else torch.device("cpu")
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif num_gpus and local_rank == 0:
        logger.warning(
            "%d ranks on this node share %d GPU(s): running on the CPU. Start one rank per GPU "
            "(-j 1x%d) to use them.",
            local_world_size,
            num_gpus,
            num_gpus,
        )

    config = config or RanksConfig()
    if _stop_watch:
        _stop_watch.set_limit(config.silence_limit_s)
    timeout = timedelta(seconds=config.collective_timeout_s)
    store = _open_store(timeout) if "RANK" in os.environ else dist.HashStore()
    heartbeat = _show_up(store, config) if world_size() > 1 else None
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank(),
        world_size=world_size(),
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    if heartbeat:
        heartbeat.start()
    return device


def _open_store(timeout: timedelta) -> "dist.Store":
    """The store of this attempt's ranks.

    Raises:
        JoinError: whoever keeps it is not there.
    """
    from torch import distributed as dist

    of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=is_rank_zero() and not of_launcher,
            timeout=timeout,
            wait_for_workers=False,  # `_show_up` does, and names those that do not come
            multi_tenant=True,
        )
    except dist.DistNetworkError as error:
        raise _not_joined("the launcher" if of_launcher else "rank 0", timeout) from error
    if not of_launcher:
        return store  # of rank 0, as young as this attempt
    # torchrun serves every restart from one store; without a prefix, attempt N + 1 reads the
    # addresses of attempt N and cannot connect.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt_{attempt}", store)


def _show_up(store: "dist.Store", config: RanksConfig) -> Heartbeat:
    """Wait for all ranks, and let them miss one that falls silent.

    Raises:
        JoinError: not all have come; names the others.
    """
    global _heartbeat
    _heartbeat = Heartbeat(
        store,
        rank=rank(),
        world_size=world_size(),
        limit_s=config.silence_limit_s,
        lost=_end_without,
    )
    timeout = timedelta(seconds=config.collective_timeout_s)
    if missing := _heartbeat.wait_for_all(timeout):
        named = ", ".join(map(str, missing[:_MOST_NAMES]))
        more = f" and {len(missing) - _MOST_NAMES} more" if len(missing) > _MOST_NAMES else ""
        raise _not_joined(f"rank {named}{more}", timeout)
    return _heartbeat


def _not_joined(who: str, timeout: timedelta) -> JoinError:
    return JoinError(
        f"{who} has not joined the job of {world_size()} ranks within {timeout.total_seconds():g} "
        "s (ranks.collective_timeout_s): it has ended, was stopped, or cannot be reached"
    )


def _end_without(lost: LostRank) -> None:
    """End this rank, which waits for one that is lost, in the middle of whatever it does."""
    report = f"rank {rank()}: error: {lost}"
    record_for_launcher(f"rank {rank()}: {lost}", report)
    if rank() <= 1:  # rank 0 misses all, the others miss rank 0
        print(report, file=sys.stderr)
    _wait(_SAME_ERROR_GRACE_S)  # this error comes first
    lost.kill()
    _exit(1)


def run_main(main: Callable[[list[str]], None]) -> None:
    """Run a launch script: check the installation, call `main`, leave the ranks, report errors.

    An error ends the process with exit code 1, a signal with 128 and its number. A UserError, and
    what the operating system refuses about a file or memory, is shown as its message alone,
    everything else with its traceback. The launcher gets the error too, as the root cause that it
    prints last. Ranks that fail only because another one did stay quiet.

    Args:
        main: the script; takes the command line without the script's name.
    """
    global _is_done
    if mistake := launcher_mistake():
        sys.exit(f"error: {mistake}")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        kill_with_launcher()
        _watch_ranks()
    atexit.register(_end_at_once)  # the first to be registered is the last to be called
    prepare_streams()
    faulthandler.enable()
    quiet_libraries()
    date_logs(active=is_rank_zero())
    threading.excepthook = _report_thread
    try:
        check_environment()
        _check_working_directory()
        main(sys.argv[1:])
        sys.stdout.flush()
        _leave_process_group()
        _is_done = True
    except KeyboardInterrupt:
        _exit(128 + signal.SIGINT)
    except Interrupted as end:
        record_for_launcher(str(end), str(end))
        if is_rank_zero():
            print(end, file=sys.stderr)
        _exit(end.exit_code)
    except SystemExit as end:  # argparse has said what is wrong with the command line
        if end.code not in (None, 0):
            message = f"the script ended with exit code {end.code}; its message is above"
            record_for_launcher(message, message)
        raise
    except Exception as error:
        _fail(error)


def _watch_ranks() -> None:
    """Let no rank that is stopped keep the launcher waiting."""
    global _stop_watch
    if sys.platform == "linux":
        _stop_watch = StopWatch(RanksConfig().silence_limit_s)


def _check_working_directory() -> None:
    """Relative paths need one.

    Raises:
        ConfigError: it was removed, or may not be read.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the working directory cannot be used: {error.strerror}; change to another one"
        ) from error


def _leave_process_group() -> None:
    if "torch.distributed" not in sys.modules:
        return
    from torch import distributed as dist

    if dist.is_available() and dist.is_initialized():
        if _heartbeat:
            _heartbeat.leave()
        dist.destroy_process_group()


def _end_at_once() -> None:
    """End a rank that has done its work before the interpreter is torn down.

    A thread of gloo that comes back to a Python object after that, such as the tensor of the last
    collective, aborts the process: "terminate called without an active exception".
    """
    if _is_done and world_size() > 1:
        _exit(0)


def _fail(error: Exception) -> NoReturn:
    """Report `error` and end this process, unless the launcher ends it first."""
    if world_size() > 1:
        # The launcher stops the other ranks with SIGTERM: let it, whatever main has installed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if lost_peer(error, world_size=world_size()):
        if number := Interruption.received():
            _exit(128 + number)  # the launcher has stopped this rank already
        _wait(_PEER_LOST_GRACE_S)
    message, report = describe(error, rank=rank(), world_size=world_size())
    record_for_launcher(message, report)  # first: the launcher sorts root causes by this time
    if not is_rank_zero():
        _wait(_SAME_ERROR_GRACE_S)
    print(report, file=sys.stderr)
    _exit(1)


def _report_thread(ended: threading.ExceptHookArgs) -> None:
    """A thread of a library, such as TensorBoard's writer, is ended by a full disk, too."""
    error = ended.exc_value
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        print(describe(error, rank=rank(), world_size=world_size())[1], file=sys.stderr)
    else:
        threading.__excepthook__(ended)


def _wait(seconds: float) -> None:
    if world_size() > 1:
        time.sleep(seconds)


def _exit(code: int) -> NoReturn:
    """End with `code`; among several ranks at once, whatever threads are stuck in a collective."""
    logging.shutdown()
    flush_streams()
    if world_size() > 1:
        os._exit(code)
    sys.exit(code)
