"""How every launch script starts, joins its ranks, and fails.

A script ends with

    if __name__ == "__main__":
        run_main(main)

torch is imported on use, so that scripts without ranks start at once and the installed libraries
are checked before the first of them is imported. For the same reason `main` imports what needs
TorchRec in its own body.
"""

import errno
import faulthandler
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.distributed.config import RanksConfig
from cdp_torchrec.distributed.heartbeat import Heartbeat, LostRank
from cdp_torchrec.distributed.interruption import Interrupted, Interruption
from cdp_torchrec.distributed.launcher import kill_with_launcher
from cdp_torchrec.environment import check_environment, quiet_libraries
from cdp_torchrec.progress import date_logs
from cdp_torchrec.standard_streams import flush_streams, give_up, prepare_streams
from cdp_torchrec.whole_file import write_json

if TYPE_CHECKING:
    import torch
    from torch import distributed as dist

logger = logging.getLogger(__name__)

_SAME_ERROR_GRACE_S = 1.0
"""Head start of rank 0: the launcher stops the rest, so an error of all ranks is shown once."""
_PEER_LOST_GRACE_S = 10.0
"""How long a rank that only lost a peer waits to be stopped before it reports that itself."""

_MACHINE_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EMFILE", "ENFILE", "ENOMEM")
}
"""What the operating system says about itself and not about a file: disk full, and the like."""

_PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "failed to recv, got 0 bytes",
    "NCCL communicator was aborted",
    "ncclRemoteError",
)
"""What gloo, the TCP store and NCCL say on the ranks that survive another one's end."""


class JoinError(RuntimeError):
    """A rank waited in vain for the others at the start of a job."""

    user_error = True


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
    timeout = timedelta(seconds=config.collective_timeout_s)
    try:
        store = _open_store(timeout) if "RANK" in os.environ else dist.HashStore()
        heartbeat = _show_up(store, config.silence_limit_s) if world_size() > 1 else None
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank(),
            world_size=world_size(),
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        raise JoinError(
            f"not all of the {world_size()} ranks have joined the job within "
            f"{config.collective_timeout_s:.0f} s (ranks.collective_timeout_s): one has ended, was "
            f"stopped, or cannot be reached ({str(error).splitlines()[0]})"
        ) from error
    if heartbeat:
        heartbeat.start()
    return device


def _open_store(timeout: timedelta) -> "dist.Store":
    """The store of this attempt's ranks."""
    from torch import distributed as dist

    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return store  # of rank 0, as young as this attempt
    # torchrun serves every restart from one store; without a prefix, attempt N + 1 reads the
    # addresses of attempt N and cannot connect.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt_{attempt}", store)


def _show_up(store: "dist.Store", limit_s: float) -> Heartbeat:
    """Let the ranks miss one that falls silent."""
    global _heartbeat
    _heartbeat = Heartbeat(
        store, rank=rank(), world_size=world_size(), limit_s=limit_s, lost=_end_without
    )
    return _heartbeat


def _end_without(lost: LostRank) -> None:
    """End this rank, which waits for one that is lost, in the middle of whatever it does."""
    report = f"rank {rank()}: error: {lost}"
    _record_for_launcher(f"rank {rank()}: {lost}", report)
    if rank() <= 1:  # rank 0 misses all, the others miss rank 0
        print(report, file=sys.stderr)
    _wait(_SAME_ERROR_GRACE_S)  # this error comes first
    lost.kill()
    _exit(1)


def run_main(main: Callable[[list[str]], None]) -> None:
    """Run a launch script: check the installation, call `main`, leave the ranks, report errors.

    An error ends the process with exit code 1, a signal with 128 and its number. A user's mistake
    is shown as its message alone: ConfigError, DatasetError, any exception class with the attribute
    `user_error = True`, and what the operating system refuses about a file. Everything else is
    shown with its traceback. The launcher gets the error too, as the root cause that it prints
    last. Ranks that fail only because another one did stay quiet.

    Args:
        main: the script; takes the command line without the script's name.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        kill_with_launcher()
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
    except KeyboardInterrupt:
        _exit(128 + signal.SIGINT)
    except Interrupted as end:
        _record_for_launcher(str(end), str(end))
        if is_rank_zero():
            print(end, file=sys.stderr)
        _exit(end.exit_code)
    except SystemExit as end:  # argparse has said what is wrong with the command line
        if end.code not in (None, 0):
            message = f"the script ended with exit code {end.code}; its message is above"
            _record_for_launcher(message, message)
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():  # by `... | head`
            _exit(0)
        _fail(error)


def _stdout_is_closed() -> bool:
    """Whether nobody reads what is printed; if so, what is left of it goes nowhere."""
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    is_closed = any(event & select.POLLERR for _, event in stdout.poll(0))
    if is_closed:
        give_up(sys.stdout)
    return is_closed


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


def _fail(error: Exception) -> NoReturn:
    """Report `error` and end this process, unless the launcher ends it first."""
    if world_size() > 1:
        # The launcher stops the other ranks with SIGTERM: let it, whatever main has installed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if _lost_peer(error):
        if number := Interruption.received():
            _exit(128 + number)  # the launcher has stopped this rank already
        _wait(_PEER_LOST_GRACE_S)
    message, report = _describe(error)
    _record_for_launcher(message, report)  # first: the launcher sorts root causes by this time
    if not is_rank_zero():
        _wait(_SAME_ERROR_GRACE_S)
    print(report, file=sys.stderr)
    _exit(1)


def _report_thread(ended: threading.ExceptHookArgs) -> None:
    """A thread of a library, such as TensorBoard's writer, is ended by a full disk, too."""
    error = ended.exc_value
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        print(_describe(error)[1], file=sys.stderr)
    else:
        threading.__excepthook__(ended)


def _describe(error: Exception) -> tuple[str, str]:
    """One line for the launcher, and the full report for people."""
    where = f"rank {rank()}: " if world_size() > 1 else ""
    if isinstance(error, ConfigError | DatasetError) or getattr(error, "user_error", False):
        return f"{where}{error}", f"{where}error: {error}"
    if _lost_peer(error):  # on another node: here, the launcher would have stopped this rank
        message = f"{where}another rank has ended, or its node is gone; its own output says why"
        return message, f"{where}error: {message.removeprefix(where)} ({error})"
    if isinstance(error, OSError) and (error.filename or error.errno in _MACHINE_ERRORS):
        place = f": {error.filename!r}" if error.filename else ""
        return f"{where}{error.strerror}{place}", f"{where}error: {error.strerror}{place}"
    frames = error.__traceback__.tb_next if error.__traceback__ else None  # without run_main
    report = "".join(traceback.format_exception(type(error), error, frames)).rstrip()
    return f"{where}{type(error).__name__}: {error}", where + report


def _lost_peer(error: BaseException | None) -> bool:
    """Whether a collective broke off because another rank had ended."""
    while error is not None:
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _PEER_LOST):
            return world_size() > 1
        error = error.__cause__
    return False


def _record_for_launcher(message: str, report: str) -> None:
    """Leave the error where torchrun looks for a rank's root cause (its error-file format)."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"py_callstack": report, "timestamp": str(int(time.time()))}
        # Whole or not at all: the launcher, which stops this rank when another one fails, ends the
        # job instead of restarting it if it reads half a file.
        write_json(Path(path), {"message": {"message": message, "extraInfo": extra}})


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
