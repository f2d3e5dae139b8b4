"""Forks a process for each command of `preloaded_python`; run as a script.

It imports nothing of the project: commands import their own copy.
"""

import io
import os
import pickle
import runpy
import signal
import socket
import sys
from pathlib import Path


def serve(address: str) -> None:
    """Run commands until a signal ends this process; what this returns in ends with its command."""
    import pyarrow.dataset  # noqa: F401
    import torch.distributed.optim  # noqa: F401
    import torchrec.optim.apply_optimizer_in_backward  # noqa: F401

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                break
            client.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _run(_received(client))


def _received(client: socket.socket) -> list[str]:
    """The command's arguments, in a child that has its streams, directory and environment."""
    length, streams, _, _ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb") as file:
        arguments, directory, environment = pickle.loads(file.read(int.from_bytes(length)))
    if pid := os.fork():
        client.sendall(pid.to_bytes(8))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        client.sendall((code if code >= 0 else 128 - code).to_bytes(8))
        os._exit(0)
    client.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    return arguments


def _run(arguments: list[str]) -> None:
    """What `python` does with a script, `-u SCRIPT`, `-m MODULE` or `-c CODE`."""
    sys.path[:1] = ["", *os.environ["PYTHONPATH"].split(os.pathsep)]
    match arguments:
        case ["-u", *rest]:
            assert isinstance(sys.stdout, io.TextIOWrapper)
            sys.stdout.reconfigure(write_through=True)
            _run(rest)
        case ["-c", code, *rest]:
            sys.argv = ["-c", *rest]
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [script, *_]:
            sys.argv = arguments
            sys.path[0] = str(Path(script).resolve().parent)
            runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
