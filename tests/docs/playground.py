"""A small copy of the checkout in which the blocks of a page are executed.

What differs from what a reader does, and why:
* the synthetic logs are tiny, and logs of trivago and EB-NeRD are made up in the official layout;
* 2 ranks stand for 4: they show the same on a machine of two cores;
* a command is forked from a `python` that has imported what takes seconds, and so is each rank;
* an artifact is compiled without autotuning, which takes minutes;
* a server listens on a free port instead of 8080, and runs until the end of the page.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.docs.pages import Block, Command
from tests.paths import ROOT

_UNTUNED = "python tests/docs/untuned_export.py"
_STARTS_SERVER = "launch/serve.py"
_PORT = "8080"


class Playground:
    """A directory to execute blocks in."""

    def __init__(self, directory: Path, interpreter: Path) -> None:
        """A directory is made, with a copy of what the pages use.

        Args:
            directory: to make, unless it is there already.
            interpreter: directory of the `python` that commands find.
        """
        self.directory = directory
        self._servers: list[subprocess.Popen[bytes]] = []
        self._port = _free_port()
        if not directory.exists():
            directory.mkdir(parents=True)
            for folder in ("cdp_torchrec", "configs", "launch", "tests"):
                shutil.copytree(ROOT / folder, directory / folder, symlinks=True)
            for name in (".torchxconfig", "pyproject.toml"):
                shutil.copy(ROOT / name, directory / name)
            self._add_console_script()
        self._env = {
            **os.environ,
            "PATH": os.pathsep.join(
                [
                    str(interpreter),
                    str(directory / "bin"),
                    str(Path(sys.executable).parent),
                    os.environ["PATH"],
                ]
            ),
            "PYTHONPATH": str(directory),
            "PYTHON_EXEC": str(interpreter / "python"),  # what torchrun starts ranks with
            "OMP_NUM_THREADS": "1",
        }

    def _add_console_script(self) -> None:
        """What an installation puts on the path."""
        script = self.directory / "bin" / "cdp_torchrec"
        script.parent.mkdir()
        script.write_text('#!/bin/sh\nexec python -m cdp_torchrec "$@"\n')
        script.chmod(0o755)

    def execute(self, block: Block) -> None:
        """Run, apply, or write a block.

        Raises:
            AssertionError: it failed; names page and line, and what it printed.
        """
        file = block.value("file")
        if file:
            (self.directory / file).write_text(block.text)
        elif block.language == "bash":
            for command in block.commands():
                self._run_command(command, block.value("run with") or "")
        elif block.language == "python":
            self.run(["python", "-c", block.text.replace(_PORT, self._port)], block.place)
        elif block.language == "diff":
            patch = self.directory / "block.patch"
            patch.write_text(block.text)
            self.run(["git", "apply", "--unsafe-paths", patch.name], block.place)

    def _run_command(self, command: Command, more: str) -> None:
        text, mark, target = _without_comment(command.text).partition(" > ")
        text = f"{text} {more}{mark}{target}".replace("dist.ddp -j 1x4", "dist.ddp -j 1x2")
        text = text.replace(f"localhost:{_PORT}", f"localhost:{self._port}")
        self._forget_outputs(text)
        text = text.replace("python launch/export.py", _UNTUNED)
        if _STARTS_SERVER in text:
            self._serve(f"{text} port={self._port}", command.place)
        else:
            self.run(["bash", "-euc", text.replace("curl -s", "curl -sSf")], command.place)

    def run(self, arguments: Sequence[str], place: str) -> str:
        """What a command printed.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            arguments,
            cwd=self.directory,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        said = done.stdout[-4000:]
        assert done.returncode == 0, f"{place}: {arguments[-1]}\nexit {done.returncode}\n{said}"
        return done.stdout

    def _forget_outputs(self, text: str) -> None:
        """Remove what a command makes, if an earlier page has made it."""
        made = re.findall(r"--output (\S+)", text)
        if "run.resume" not in text:
            made += re.findall(r"run\.dir=(\S+)", text)
        if not made:
            made = [f"{run}/export" for run in re.findall(r"launch/export\.py (\S+)", text)]
        for path in made:
            shutil.rmtree(self.directory / path, ignore_errors=True)

    def _serve(self, text: str, place: str) -> None:
        log = self.directory / f"server-{self._port}.log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                ["bash", "-euc", f"exec {text}"],
                cwd=self.directory,
                env=self._env,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._servers.append(server)
        deadline = time.monotonic() + 120
        while not _is_ready(self._port):
            stopped = server.poll() is not None or time.monotonic() > deadline
            assert not stopped, f"{place}: {text}\n{log.read_text()[-4000:]}"
            time.sleep(0.2)

    def close(self) -> None:
        """End the servers."""
        for server in self._servers:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def _without_comment(text: str) -> str:
    """A command of one line without the comment behind it; one of several has none."""
    return text if "\n" in text else re.sub(r"\s+# .*$", "", text)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _is_ready(port: str) -> bool:
    try:
        with urlopen(f"http://localhost:{port}/v2/health/ready", timeout=5) as answer:
            return answer.status == 200
    except (URLError, ConnectionError):
        return False
