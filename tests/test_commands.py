"""Every command: one name, one help, and mistakes that are told before torch is imported."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cdp_torchrec import __main__ as front
from tests.paths import LAUNCH, ROOT

COMMANDS = sorted(front.summaries())
SMALL = "[model.interest]\nkind = 'din'\n[data]\ndir = '{data}'\n"

MISTAKES: dict[str, tuple[str, str]] = {
    "train foo=1": ("train", "foo: unknown key"),
    "train trainer.max_steps=few": ("train", "must be an integer > 0"),
    "train trainer.num_workers=100000": ("train", "must be an integer >= 0 and <= 1024"),
    "train_days mine.toml run.dir=begun": ("train_days", "run.dir = 'begun' holds a run; choose a"),
    "train model.embedding_dim=6": ("train", "must be an integer > 0 and a multiple of 4"),
    "train nowhere.toml": ("train", "nowhere.toml: no such file"),
    "train mine.toml": ("train", "no/data is no dataset directory"),
    "train run.dir=begun": ("train", "holds another run"),
    "train_days foo=1": ("train_days", "foo: unknown key"),
    "train_days mine.toml": ("train_days", "run.dir: names the directory of the runs"),
    "train_days mine.toml run.dir=x": ("train_days", "no/data is no dataset directory"),
    "show_config interest/cpd.toml": ("show_config", "configs/interest/cdp.toml"),
    "evaluate runs/no": ("evaluate", "runs/no: no such directory"),
    "evaluate data seed=1": ("evaluate", "seed=1: has no effect on data, a dataset"),
    "evaluate data --predictions": ("evaluate", "--predictions: has no effect on data"),
    "export runs/no": ("export", "runs/no: no such directory"),
    "distill runs/no": ("distill", "runs/no: no such directory"),
    "serve runs/no": ("serve", "runs/no is no artifact"),
    "predict runs/no new.parquet output=x.parquet": ("predict", "runs/no is no artifact"),
    "predict runs/no data output=data": ("predict", "output = 'data': a directory; name a file"),
    "predict runs/no data output=data/x.parquet": (
        "predict",
        "output = 'data/x.parquet': is among the requests, data; write it elsewhere",
    ),
    "predict runs/no data output=runs/no/x": (
        "predict",
        "'runs/no/x': lies in the artifact, runs/no",
    ),
    "predict runs/no data output=/dev/null": ("predict", "'/dev/null': no regular file; name a"),
    "predict runs/no mine.toml output=./mine.toml": ("predict", "is among the requests, mine.toml"),
    "predict runs/no data output=mine.toml/x": ("predict", "mine.toml is not a writable directory"),
    "benchmark prepare benchmark.behaviours=[10000] benchmark.behaviours_per_user=200": (
        "benchmark",
        "benchmark.behaviours_per_user = 200: at most 163 with 10,000 behaviours",
    ),
    "serve runs/no port=x": ("serve", "port = 'x': must be an integer"),
    "compare compare/table3.toml": ("compare", "compare/table3.toml"),
    "train sharding.strategy=row_wise sharding.plan=x.json": (
        "train",
        "sharding.strategy = 'row_wise': sharding.plan stands alone",
    ),
    "plan_sharding planning.strategy=x": ("plan_sharding", "did you mean 'strategies'?"),
    "plan_sharding mine.toml": ("plan_sharding", "no/data is no dataset directory"),
    "prepare_data inspect no/data": ("prepare_data", "no/data is no dataset directory"),
    "prepare_data describe no/data": ("prepare_data", "no/data is no dataset directory"),
    "prepare_data follow no/data --inbox x": ("prepare_data", "no/data is no dataset directory"),
    "prepare_data kafka no/data --inbox x --brokers x --requests x --behaviours y": (
        "prepare_data",
        "no/data is no dataset directory",
    ),
    "prepare_data requests no/data --input x --output y --mapping z.toml": (
        "prepare_data",
        "no/data is no dataset directory",
    ),
    "prepare_data starter no/data": ("prepare_data", "no/data is no dataset directory"),
    "prepare_data trivago --input no --output x": ("prepare_data", "no"),
    "prepare_data ebnerd --input data --output x": ("prepare_data", "that holds train/ and"),
    "prepare_data synthetic --output x num_user=3": ("prepare_data", "did you mean 'num_users'?"),
    "benchmark speed": ("benchmark", "benchmark: found 'speed'"),
    "benchmark train foo=1": ("benchmark", "foo: unknown key"),
    "benchmark train mine.toml": ("benchmark", "no/data is no dataset directory"),
    "benchmark plans foo=1": ("benchmark", "foo: unknown key"),
    "benchmark history benchmark.rows=['x']": ("benchmark", "benchmark.rows"),
    "benchmark data benchmark.rows=['none']": ("benchmark", "benchmark.rows"),
    "benchmark latency runs/no": ("benchmark", "runs/no: no such directory"),
    "benchmark endpoint runs/no": ("benchmark", "runs/no is no artifact"),
}

RUN_ALL = """
import contextlib, io, json, multiprocessing, sys
from importlib import import_module

def run(line):
    name, *arguments = line.split()
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            import_module(f"cdp_torchrec.commands.{name}").main(arguments)
        end = "finished"
    except SystemExit as error:
        end = f"exit {error.code}"
    except Exception as error:
        end = f"{type(error).__name__}: {error}"
    return end, said.getvalue(), sorted({"torch", "torchrec", "fbgemm_gpu"} & set(sys.modules))

lines = json.load(sys.stdin)
for name in {line.split()[0] for line in lines}:
    import_module(f"cdp_torchrec.commands.{name}")  # once for all; what it imports, all have
with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
    print(json.dumps(dict(zip(lines, pool.map(run, lines, chunksize=1)))))
"""


def run_all(lines: list[str], directory: Path) -> dict[str, tuple[str, str, list[str]]]:
    """How each command line ends, what it prints, and what is imported by then."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}){RUN_ALL}"],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        cwd=directory,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str, list[str]]]:
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "mine.toml").write_text(SMALL.format(data="no/data"))
    (folder / "data").mkdir()
    (folder / "data" / "schema.toml").touch()
    (folder / "begun" / "checkpoints" / "step-00000003").mkdir(parents=True)
    return run_all([*MISTAKES, *(f"{name} --help" for name in COMMANDS)], folder)


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_before_torch_is_imported(ends, line: str) -> None:
    end, _, imported = ends[line]
    assert re.match(r"\w+Error: ", end), end
    assert MISTAKES[line][1] in end
    assert imported == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_no_torch_and_says_what_the_list_of_commands_says(ends, name: str) -> None:
    end, said, imported = ends[f"{name} --help"]
    assert end in ("finished", "exit 0"), end
    assert front.summaries()[name] in said
    assert imported == []


def test_every_command_has_a_script_in_the_checkout_and_the_other_way_round() -> None:
    assert sorted(path.stem for path in LAUNCH.glob("*.py")) == COMMANDS


def test_commands_are_listed_with_a_line_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in ([], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["cdp_torchrec", *arguments])
        front.run()
        listed = capsys.readouterr().out
        assert all(re.search(rf"^  {name} +\w.*\.$", listed, re.MULTILINE) for name in COMMANDS)
        assert max(map(len, listed.splitlines())) <= 100


def test_a_wrong_command_is_told_the_near_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cdp_torchrec", "trian"])
    with pytest.raises(SystemExit, match=r"no command 'trian'.*did you mean 'train'"):
        front.run()


def test_a_command_runs_as_module_of_the_package_and_by_itself(tmp_path: Path) -> None:
    for module in (["cdp_torchrec", "show_config"], ["cdp_torchrec.commands.show_config"]):
        done = subprocess.run(
            [sys.executable, "-m", *module, "data/trivago.toml", "interest/din.toml", "seed=7"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        )
        assert "\nseed = 7  #" in done.stdout, done.stderr
