"""A command says what it has to say, or ends quietly, whatever its output is connected to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

SAYS = (
    "from cdp_torchrec.distributed.process_group import run_main\n"
    "run_main(lambda arguments: print('caf\\u00e9 \\udce9', *arguments))\n"
)


def run(shell: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the program above, as $SAYS."""
    (cwd / "says.py").write_text(SAYS)
    return subprocess.run(
        ["/bin/bash", "-c", f"set -o pipefail; {shell}"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SAYS": f"{sys.executable} says.py", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("encoding", "said"),
    [("ascii", "caf\\xe9 \\udce9\n"), ("utf-8", "caf\u00e9 \\udce9\n")],
)
def test_what_an_encoding_lacks_is_shown_as_an_escape(
    tmp_path: Path, encoding: str, said: str
) -> None:
    done = run("$SAYS", tmp_path, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_nobody_needs_to_read_it(tmp_path: Path) -> None:
    done = run("$SAYS >&-; echo $?; $SAYS <&- >&- 2>&-; echo $?; $SAYS | true", tmp_path)
    assert (done.stdout, done.stderr) == ("0\n0\n", "")


def test_work_goes_on_when_its_reader_has_left(tmp_path: Path) -> None:
    (tmp_path / "works.py").write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from cdp_torchrec.distributed.process_group import run_main\n"
        "def main(arguments):\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(1)\n"
        "    for stream in (sys.stdout, sys.stderr):\n"
        "        for line in range(3):\n"
        "            print('more' * 9999, file=stream, flush=True)\n"
        "    Path('result').touch()\n"
        "run_main(main)\n"
    )
    done = run(f"{sys.executable} works.py 2>&1 | head -1", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "begun\n", "")
    assert (tmp_path / "result").exists()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    done = run("$SAYS > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_a_full_disk_is_one_line_in_a_thread_of_a_library_as_well(tmp_path: Path) -> None:
    (tmp_path / "threads.py").write_text(
        "from pathlib import Path\n"
        "from threading import Thread\n"
        "from cdp_torchrec.distributed.process_group import run_main\n"
        "def main(arguments):\n"
        "    thread = Thread(target=Path('/dev/full').write_text, args=('more',))\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "run_main(main)\n"
    )
    done = run(f"{sys.executable} threads.py", tmp_path)
    assert done.stderr == "error: No space left on device\n"


def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = run("cd gone && rmdir ../gone && ${SAYS/says.py/$OLDPWD/says.py}", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the working directory cannot be used: No such file")
    assert done.stderr.count("\n") == 1


def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "reads.py").write_text(
        "from pathlib import Path\n"
        "from cdp_torchrec.distributed.process_group import run_main\n"
        "run_main(lambda arguments: Path('a' * 5000).read_text())\n"
    )
    done = run(f"{sys.executable} reads.py", tmp_path)
    assert done.stderr == f"error: File name too long: '{'a' * 5000}'\n"


def test_a_rank_that_ends_at_once_says_nothing_of_its_workers_semaphores(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(
        "import multiprocessing, os, sys\n"
        "from cdp_torchrec.environment import quiet_libraries\n"
        "quiet_libraries()\n"
        "semaphore = multiprocessing.get_context('forkserver').Semaphore()\n"
        "os._exit(3)\n"
    )
    done = run(f"{sys.executable} ends.py", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "ask",
    ["numpy.zeros(1 << 50)", "torch.zeros(1 << 55)", "torch.empty(1 << 40, 9**9)", "[0] * 2**60"],
)
def test_a_size_that_no_machine_has_is_one_line(tmp_path: Path, ask: str) -> None:
    library = ask.partition(".")[0] if "." in ask else "sys"
    (tmp_path / "asks.py").write_text(
        f"import {library}\n"
        "from cdp_torchrec.distributed.process_group import run_main\n"
        f"run_main(lambda arguments: {ask})\n"
    )
    done = run(f"{sys.executable} asks.py", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: out of memory")
    assert len(done.stderr.splitlines()) == 1
