"""The launch line works as typed, in every form, and a failing rank is what a person sees last."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torchx.components import dist as stock
from torchx.specs.builders import materialize_appdef
from torchx.specs.file_linter import validate
from torchx.specs.finder import get_components

from cdp_torchrec.distributed import dist
from tests.distributed.project import make_project
from tests.paths import ROOT

SCRIPTS = Path(sys.executable).parent
FIRST_OF_TWO = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
STOCK_COMPONENTS = {"dist.ddp", "dist.spmd", "utils.echo", "utils.python", "utils.sh"}

TRAIN = """
import os, sys
from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.process_group import init_process_group, rank, run_main, world_size

def main(arguments):
    if arguments == ["same-mistake"]:
        raise ConfigError("data.dir: found 'x', which does not exist")
    if arguments[:1] != ["join"]:
        print("arguments", arguments, "of", world_size(), flush=True)
        return
    import torch, torch.distributed as dist
    init_process_group()
    total = torch.tensor(float(rank()))
    dist.all_reduce(total)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    sys.stdout.write(f"sum of ranks {total.item()} attempt {attempt}\\n")  # one write per rank
    if "fail-last" in arguments and rank() == world_size() - 1:
        raise ValueError("the last rank cannot go on")
    if "fail-once" in arguments and attempt == "0":
        raise ValueError("the first attempt fails")
    dist.all_reduce(total)

if __name__ == "__main__":
    run_main(main)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path, TRAIN)


def run(
    project: Path, *command: str, timeout_s: float = 90, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of this installation, which is not activated; both streams in `stdout`."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOGLEVEL")
    environment = {k: v for k, v in os.environ.items() if k not in launcher}
    environment |= {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [str(SCRIPTS / command[0]), *command[1:]],
        cwd=project,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
    )


def torchx_run(project: Path, line: str) -> subprocess.CompletedProcess[str]:
    return run(project, "torchx", "run", *line.split())


def test_the_components_pass_torchx_validation() -> None:
    assert validate(dist.__file__, "ddp") == []
    components = get_components()
    assert set(components) >= STOCK_COMPONENTS
    assert components["dist.ddp"].fn is dist.ddp


def test_torchx_builtins_lists_every_stock_component(project: Path) -> None:
    listed = run(project, "torchx", "builtins").stdout
    assert all(f" {name}\n" in listed for name in STOCK_COMPONENTS), listed


@pytest.mark.slow
@pytest.mark.distributed
def test_the_literal_line_joins_four_ranks(project: Path) -> None:
    done = torchx_run(project, "dist.ddp -j 1x4 launch/train.py join")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("sum of ranks 6.0") == 4


@pytest.mark.slow
@pytest.mark.distributed
def test_a_module_runs_as_in_stock_torchx(project: Path) -> None:
    done = torchx_run(project, "dist.ddp -j 1x2 -m launch.train -- configs/a.toml seed=1 --flag")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("arguments ['configs/a.toml', 'seed=1', '--flag'] of 2") == 2


@pytest.mark.parametrize(
    "form", ["launch/train.py", "launch/train.py --", "--script launch/train.py --"]
)
def test_every_form_with_a_script_is_the_same_job(form: str) -> None:
    job = materialize_appdef(dist.ddp, f"-j 1x4 {form} a.toml seed=1 --flag".split())
    expected = stock.ddp("a.toml", "seed=1", "--flag", script="launch/train.py", j="1x4")
    assert job.name == expected.name == "train"
    assert job.roles[0].args == expected.roles[0].args


@pytest.mark.parametrize("asked", [["--max_retries", "2"], ["--env", "PET_MAX_RESTARTS=2"]])
def test_restarts_asked_for_are_torchruns_and_do_not_share_a_store(asked: list[str]) -> None:
    env = materialize_appdef(dist.ddp, [*asked, "launch/train.py"]).roles[0].env
    assert env["PET_MAX_RESTARTS"] == "2"
    assert env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


def test_no_script_is_one_clear_message(project: Path) -> None:
    done = torchx_run(project, "dist.ddp -j 1x2")
    assert done.returncode == 1
    assert "dist.ddp needs a script ending in .py, found nothing" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.skipif(Path("/var/run/docker.sock").exists(), reason="Docker is a choice here")
def test_without_a_torchxconfig_the_scheduler_to_name_is_said_in_one_line(project: Path) -> None:
    (project / ".torchxconfig").unlink()
    done = torchx_run(project, "dist.ddp -j 1x2 launch/train.py")
    assert done.returncode == 1
    assert "torchx run -s local_cwd dist.ddp ... starts the ranks on this machine" in done.stdout
    assert "Traceback" not in done.stdout
    named = torchx_run(project, "-s local_cwd --dryrun dist.ddp -j 1x2 launch/train.py")
    assert named.returncode == 0, named.stdout


@pytest.mark.slow
@pytest.mark.distributed
def test_a_failing_rank_ends_the_job_with_its_own_error_last(project: Path) -> None:
    started = time.monotonic()
    done = torchx_run(project, "dist.ddp -j 1x2 launch/train.py join fail-last")
    assert time.monotonic() - started < 60  # a collective alone would wait 300 s for rank 1
    assert done.returncode != 0
    last_lines = done.stdout.rstrip().splitlines()[-3:]
    assert any("rank 1: ValueError: the last rank cannot go on" in line for line in last_lines)
    assert "Connection closed" not in done.stdout  # the survivor stays quiet


@pytest.mark.distributed
def test_a_mistake_of_all_ranks_is_shown_once_without_a_traceback(project: Path) -> None:
    done = torchx_run(project, "dist.ddp -j 1x2 launch/train.py same-mistake")
    assert done.returncode != 0
    shown = "error: data.dir: found 'x', which does not exist"
    of_ranks = [line for line in done.stdout.splitlines() if "]:rank" in line]
    assert [line.count(shown) for line in of_ranks] == [1], done.stdout
    assert 'train.py", line' not in done.stdout


@pytest.mark.slow
@pytest.mark.distributed
def test_restarted_ranks_find_each_other_under_plain_torchrun(project: Path) -> None:
    line = "--standalone --nproc-per-node 2 --max-restarts 1 launch/train.py join fail-once"
    done = run(project, "torchrun", *line.split())
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("sum of ranks 1.0 attempt 1") == 2


def test_plain_python_is_one_rank(project: Path) -> None:
    done = run(project, "python", "launch/train.py", "join")
    assert (done.returncode, done.stdout) == (0, "sum of ranks 0.0 attempt None\n")


def test_plain_python_shows_a_mistake_as_one_line(project: Path) -> None:
    done = run(project, "python", "launch/train.py", "same-mistake")
    assert done.returncode == 1
    assert done.stdout == "error: data.dir: found 'x', which does not exist\n"


def test_a_mistake_is_one_line_also_where_the_launcher_cannot_be_told(project: Path) -> None:
    """Its disk may be full. Fails where that ends the rank instead, or the thread that ends it."""
    done = run(
        project, "python", "launch/train.py", "same-mistake", TORCHELASTIC_ERROR_FILE="/dev/full"
    )
    assert done.returncode == 1
    assert done.stdout == "error: data.dir: found 'x', which does not exist\n"


def test_a_reader_that_has_seen_enough_is_no_error(project: Path) -> None:
    (project / "long.py").write_text(
        "from cdp_torchrec.distributed.process_group import run_main\n"
        "run_main(lambda arguments: print('line\\n' * 100_000))\n"
    )
    python = SCRIPTS / "python"
    piped = f"set -o pipefail; {python} long.py | head -1"
    done = run(project, "/bin/bash", "-c", piped)
    assert (done.returncode, done.stdout) == (0, "line\n")


def test_a_usage_error_is_recorded_for_the_launcher(project: Path) -> None:
    (project / "usage.py").write_text(
        "import sys\n"
        "from cdp_torchrec.distributed.process_group import run_main\n"
        "run_main(lambda arguments: sys.exit(2))\n"
    )
    error_file = project / "error.json"
    done = run(project, "python", "usage.py", TORCHELASTIC_ERROR_FILE=str(error_file))
    assert done.returncode == 2
    assert "exit code 2" in json.loads(error_file.read_text())["message"]["message"]


def test_a_library_that_works_on_when_a_rank_is_done_does_not_abort_it(project: Path) -> None:
    (project / "late.py").write_text(
        "import threading, time\n"
        "from datetime import timedelta\n"
        "from cdp_torchrec.distributed.process_group import run_main\n"
        "class SlowTeardown:\n"
        "    def __del__(self, sleep=time.sleep):\n"
        "        sleep(2)\n"
        "kept = SlowTeardown()\n"
        "def main(arguments):\n"
        "    from torch import distributed as dist\n"
        "    wait = dist.HashStore().wait\n"
        "    a_second = timedelta(seconds=1)\n"
        "    threading.Thread(target=wait, args=(['never'], a_second), daemon=True).start()\n"
        "    print('done')\n"
        "run_main(main)\n"
    )
    done = run(project, "python", "late.py", **FIRST_OF_TWO)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_rank_that_only_lost_a_peer_stays_quiet_until_it_is_stopped(project: Path) -> None:
    (project / "survivor.py").write_text(
        "from cdp_torchrec.distributed.process_group import run_main\n"
        "def main(arguments):\n"
        "    raise RuntimeError('[pair.cc:553] Connection closed by peer [127.0.0.1]:1')\n"
        "run_main(main)\n"
    )
    error_file = project / "error.json"
    with pytest.raises(subprocess.TimeoutExpired) as stopped:
        run(
            project,
            "python",
            "survivor.py",
            timeout_s=4,
            **FIRST_OF_TWO,
            TORCHELASTIC_ERROR_FILE=str(error_file),
        )
    assert not stopped.value.stdout
    assert not error_file.exists()


def test_slurm_starts_torchrun_with_the_script_on_every_node(project: Path) -> None:
    done = torchx_run(project, "-s slurm --dryrun dist.ddp -j 2x8 --gpu 8 launch/train.py seed=1")
    assert done.returncode == 0, done.stdout
    script = done.stdout.split("SCHEDULER REQUEST")[1]
    assert script.count("#SBATCH --job-name=train-") == 2
    assert script.count("--ntasks-per-node=1") == script.count("--gpus-per-task=8") == 2
    assert script.count("--nnodes 2 --nproc_per_node 8") == 2
    assert script.count("launch/train.py seed=1") == 2


def test_kubernetes_starts_torchrun_with_the_script_in_the_image(project: Path) -> None:
    line = (
        "-s kubernetes -cfg queue=default --workspace= --dryrun "
        "dist.ddp -j 2x8 --gpu 8 --image registry.local/cdp:1 launch/train.py seed=1"
    )
    done = torchx_run(project, line)
    assert done.returncode == 0, done.stdout
    job = " ".join(done.stdout.split("SCHEDULER REQUEST")[1].split())
    assert job.count("image: registry.local/cdp:1") == 2
    assert job.count("nvidia.com/gpu: '8'") == 4  # request and limit
    assert job.count("--nnodes 2 --nproc_per_node 8") == 2
    assert job.count("launch/train.py seed=1") == 2
