"""A `python` that has imported PyTorch and TorchRec already, for the commands of the pages.

Their imports take longer than most of what a page shows. A server imports them once and forks a
process for each command; `python` hands it the command line, directory, environment and streams.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    # Pipes: where a stream was a file, Python would go on to look for its place in it.
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("python_server.py"), address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            wait_until(lambda: address.exists() or server.poll() is not None, within_s=600)
            assert server.poll() is None, server.communicate()[0]
            yield directory
        finally:
            server.terminate()
