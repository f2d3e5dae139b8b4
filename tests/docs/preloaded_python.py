"""A `python` that has imported PyTorch and TorchRec already, for the commands of the pages.

Their imports take longer than most of what a page shows. A server imports them once and forks a
process for each command; `python` hands it the command line, directory, environment and streams.
"""

import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.paths import ROOT
from tests.processes import wait_until

_CLIENT = """\
#!{python} -IS
import os, pickle, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
command = pickle.dumps((sys.argv[1:], os.getcwd(), dict(os.environ)))
socket.send_fds(server, [len(command).to_bytes(8)], [0, 1, 2])
server.sendall(command)
pid = int.from_bytes(server.recv(8))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
os._exit(int.from_bytes(server.recv(8)))
"""


@contextmanager
def preloaded_python(folder: Path) -> Iterator[Path]:
    """A directory for the PATH that has `python`, until the end of the block."""
    address, directory = folder / "socket", folder / "bin"
    directory.mkdir(parents=True)
    client = directory / "python"
    client.write_text(_CLIENT.format(python=sys.executable, address=str(address)))
    client.chmod(0o755)
    code = f"from {__name__} import serve; serve({str(address)!r})"
    # Pipes: where a stream was a file, Python would go on to look for its place in it.
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: address.exists() or server.poll() is not None, within_s=600)
    assert server.poll() is None, server.communicate()[0]
    yield directory
    server.terminate()
    server.communicate()


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
    """What `python` does with a script, `-m MODULE` or `-c CODE`."""
    sys.path[:1] = ["", *os.environ["PYTHONPATH"].split(os.pathsep)]
    match arguments:
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
