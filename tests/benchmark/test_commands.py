"""All benchmarks are called alike, and explain settings and mistakes before they start."""

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdp_torchrec.benchmark.output import (
    check_output,
    machine_load,
    publish,
    scratch_directory,
)
from cdp_torchrec.commands import benchmark
from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.failure import describe
from cdp_torchrec.experiment_config import ExperimentConfig
from tests.paths import ROOT

NAMES = ("train", "plans", "history", "data", "prepare", "denoiser", "latency", "endpoint")


def test_help_lists_every_benchmark_with_what_it_measures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    benchmark.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-len(NAMES) :]] == list(NAMES)
    assert all(len(line.split()) > 4 for line in lines[-len(NAMES) :])


@pytest.mark.parametrize("name", NAMES)
def test_help_on_a_benchmark_explains_its_own_settings_alone(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.main([name, "--help"])
    shown = capsys.readouterr().out
    assert f"benchmark {name}" in shown or f"benchmark.py {name}" in shown
    assert "[benchmark]" in shown and "benchmark.output" in shown
    others = [s for s in ExperimentConfig.model_fields if f"[{s}]" in shown]
    assert others == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["speed"],
            "expected one of train, plans, history, data, prepare, denoiser, latency, endpoint$",
        ),
        (["history", 'benchmark.rows=["dim"]'], r"rows: found \['dim'\], expected some of"),
        (["history", 'benchmark.rows=["none"]'], r"rows: found \['none'\], expected some of"),
        (["train", 'benchmark.rows=["none", "dim"]'], r"rows: found \['dim'\], expected some of"),
        (["history", "benchmark.lengths=[]"], "benchmark.lengths"),
        (["history", "benchmark.lengths=[5, 5]"], r"lengths = \[5, 5\]: 5: named twice"),
        (["train", 'benchmark.rows=["din", "din"]'], "benchmark.rows = .*: din: named twice"),
        (["plans", 'benchmark.plans=["auto", "auto"]'], "plans = .*: auto: named twice"),
        (["data", "benchmark.workers=[0, 0]"], "benchmark.workers = .*: 0: named twice"),
        (["prepare", "benchmark.behaviours=[10000, 10000]"], "10000: named twice"),
        (["denoiser", "benchmark.candidates=[4, 4]"], "benchmark.candidates = .*: 4: named twice"),
        (["history", "lengths=[4]"], "lengths: unknown key"),
        (["history", "--output", "x"], "'--output' is neither a layer .* without leading dashes"),
        (["history", "benchmark.output=/proc/version/x"], "/proc/version is not a writable dir"),
        (["denoiser", "benchmark.num_inference_steps=[101]"], "= 101: the chain has 100"),
        (["data", "benchmark.num_candidates=10000000000"], "and <= 100000"),
        (["prepare", "benchmark.num_candidates=2000000"], "and <= 100000"),
        (["endpoint"], "name an artifact first"),
        (["endpoint", "benchmark.num_clients=2"], "name an artifact first"),
        (["endpoint", "a", "server.port=9"], "server.port = 9: is a free one here; leave it out"),
        (["endpoint", "a", "server.history_store=b"], "history_store = 'b': is benchmark.dataset"),
        (
            ["endpoint", "a", "benchmark.num_clients=255"],
            "num_clients = 255: with num_attackers = 2, more than .*per_client = 256",
        ),
        (["latency"], "name a run first"),
        (["latency", "benchmark.num_rounds=2"], "name a run first"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        benchmark.main(arguments)


def test_help_and_mistakes_need_no_torch() -> None:
    """They come at once, though torch takes seconds to import."""
    script = (
        "import sys\n"
        "from cdp_torchrec.commands import benchmark\n"
        "from cdp_torchrec.config import ConfigError\n"
        f"for name in {NAMES}:\n"
        "    benchmark.main([name, '--help'])\n"
        "    try:\n"
        "        benchmark.main([name, 'benchmark.no_such_key=1'])\n"
        "    except ConfigError as error:\n"
        "        print(error)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_results_are_a_table_and_numbers_of_the_same_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "a" / "b"
    check_output(directory)
    publish(directory, "train", text="| a |\n", numbers={"a": 1, "b": [math.inf]})
    table = (directory / "train.md").read_text()
    assert table == capsys.readouterr().out
    assert table.startswith("| a |\n\nLoad average before it began: ")
    numbers = json.loads((directory / "train.json").read_text())
    assert (numbers["a"], numbers["b"]) == (1, [None])
    assert machine_load(numbers["load_average_before"], os.cpu_count() or 1) in table
    assert len(list(directory.iterdir())) == 2


def test_a_full_disk_names_the_scratch_directory_which_is_removed(tmp_path: Path) -> None:
    said = r"No space left on device: .*benchmark-data-"
    with (
        pytest.raises(OSError, match=said) as full,
        scratch_directory(tmp_path, "benchmark-data-") as scratch,
    ):
        (scratch / "part").touch()
        raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28]")
    assert describe(full.value, rank=0, world_size=1)[1].count(str(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("load", "busy"), [(0.0, False), (1.4, False), (1.6, True), (9.0, True)])
def test_a_machine_without_a_free_core_is_busy(load: float, busy: bool) -> None:
    assert ("trust ratios" in machine_load(load, cores=2)) == busy


def test_without_an_output_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_output(None)
    publish(None, "train", text="| a |", numbers={})
    assert list(tmp_path.iterdir()) == []
