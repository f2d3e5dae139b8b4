"""The installation ends with libraries that fit together, and says so when they do not."""

import importlib.metadata
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cdp_torchrec import __version__
from cdp_torchrec.commands import doctor
from cdp_torchrec.environment import (
    EnvironmentMismatchError,
    check_environment,
    describe_environment,
    quiet_libraries,
)
from cdp_torchrec.known_versions import KNOWN_TRIPLES, Triple, fits_version, minor
from tests.paths import CONFIGS, LAUNCH, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CPU_VERSIONS = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}
CUDA_VERSIONS = {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0"}


def pretend_installed(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], *, cuda: bool = False
) -> None:
    """Make the metadata say that exactly `versions` are installed."""

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("cdp_torchrec.environment.torch_has_cuda", lambda: cuda)


def make(*arguments: str) -> str:
    """What make would run, without running it and without any variable of this run's own make."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS")}
    command = ["make", "-n", "--no-print-directory", "-C", str(ROOT), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_installed_libraries_fit_together() -> None:
    check_environment()


@pytest.mark.parametrize("triple", KNOWN_TRIPLES, ids=lambda triple: triple.series)
def test_every_known_triple_is_in_the_range_of_the_package(triple: Triple) -> None:
    extras = PROJECT["optional-dependencies"]
    for fbgemm, extra in (("fbgemm-gpu-cpu", "cpu"), ("fbgemm-gpu", "cuda")):
        ranges = [Requirement(text) for text in [*PROJECT["dependencies"], *extras[extra]]]
        for pin in triple.requirements(fbgemm).values():
            name, version = pin.split("==")
            [wanted] = [each.specifier for each in ranges if each.name == name]
            assert version in wanted


def test_the_range_of_the_package_ends_with_the_newest_known_triple() -> None:
    requirements = [Requirement(text) for text in PROJECT["dependencies"]]
    [torch] = [each.specifier for each in requirements if each.name == "torch"]
    assert "2.10.0" not in torch
    assert "2.15.0" not in torch
    assert PROJECT["version"] == __version__


@pytest.mark.parametrize(("versions", "cuda"), [(CPU_VERSIONS, False), (CUDA_VERSIONS, True)])
def test_the_cpu_and_the_cuda_build_pass_the_check(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], cuda: bool
) -> None:
    pretend_installed(monkeypatch, versions, cuda=cuda)
    check_environment()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"torch": "2.15.0+cpu"}, r"torch: found 2\.15\.0\+cpu, expected 2\.13\.0"),
        ({"torch": "2.12.1+cpu"}, r"torch: found 2\.12\.1\+cpu, expected 2\.13\.0"),
        ({"torchrec": "1.7.0"}, r"torchrec: found 1\.7\.0, expected 1\.8\.0"),
        ({"torchrec": None}, r"torchrec: found none, expected 1\.8\.0"),
        ({"fbgemm-gpu-cpu": "1.9.0"}, r"found fbgemm-gpu-cpu 1\.9\.0, expected 1\.8\.0"),
        ({"fbgemm-gpu-cpu": None}, r"fbgemm: found none, expected exactly one"),
        (
            {"fbgemm-gpu": "1.9.0"},
            r"found fbgemm-gpu 1\.9\.0 and fbgemm-gpu-cpu 1\.8\.0, expected exactly one",
        ),
        (
            {"fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.8.0"},
            r"found fbgemm-gpu 1\.8\.0, a CUDA build, beside the CPU build of torch",
        ),
    ],
)
def test_a_mismatch_names_what_is_found_what_is_expected_and_the_repair(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], message: str
) -> None:
    versions = CPU_VERSIONS | changes
    pretend_installed(monkeypatch, {k: v for k, v in versions.items() if v is not None})
    with pytest.raises(EnvironmentMismatchError, match=message) as caught:
        check_environment()
    assert "make clean install" in str(caught.value)
    assert "torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0" in str(caught.value)
    assert "  torch 2.11.0  torchrec 1.6.1  fbgemm 1.6.0\n" in str(caught.value)


@pytest.mark.parametrize("triple", KNOWN_TRIPLES, ids=lambda triple: triple.series)
def test_every_known_triple_passes_in_any_of_its_patch_releases(
    monkeypatch: pytest.MonkeyPatch, triple: Triple
) -> None:
    names = {"torch": "torch", "torchrec": "torchrec", "fbgemm": "fbgemm-gpu-cpu"}
    versions = {names[name]: f"{minor(v)}.7+cpu" for name, v in triple.versions().items()}
    pretend_installed(monkeypatch, versions)
    check_environment()


def test_the_expected_versions_are_those_of_the_triple_that_most_belongs_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_installed(
        monkeypatch, {"torch": "2.13.0", "torchrec": "1.6.1", "fbgemm-gpu-cpu": "1.6.0"}
    )
    with pytest.raises(EnvironmentMismatchError) as caught:
        check_environment()
    assert "- torch: found 2.13.0, expected 2.11.0\n" in str(caught.value)
    assert "pip install torch==2.11.0 && pip install --no-deps torchrec==1.6.1" in str(caught.value)


def test_all_mismatches_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, {"torch": "2.10.0", "torchrec": "1.5.0"})
    with pytest.raises(EnvironmentMismatchError) as caught:
        check_environment()
    assert str(caught.value).count("\n  - ") == 3


def test_the_check_imports_none_of_the_libraries_it_checks() -> None:
    code = (
        "import sys; from cdp_torchrec.environment import check_environment; check_environment();"
        "print({'torch', 'torchrec', 'fbgemm_gpu'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr


def test_quiet_libraries_keeps_the_warning_that_a_lookup_is_not_pipelined(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quiet_libraries()
    logging.getLogger("torchrec.distributed.planner.types").warning("noise")
    logging.getLogger().warning("Could not determine LOCAL_WORLD_SIZE from environment, ...")
    logging.getLogger("torchrec.distributed.train_pipeline.utils").warning("NOT be pipelined")
    assert caplog.messages == ["NOT be pipelined"]


def test_the_description_holds_every_version_that_a_result_depends_on() -> None:
    description = describe_environment()
    torchrec = description["versions"]["torchrec"]
    assert any(fits_version(torchrec, triple.torchrec) for triple in KNOWN_TRIPLES)
    assert sum(name.startswith("fbgemm") for name in description["versions"]) == 1
    assert description["python"] == sys.version.split()[0]
    assert description["num_cpus"] >= 1


def test_doctor_finds_nothing_wrong_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.diagnose() == 0, capsys.readouterr().out


def test_doctor_fails_and_names_a_mismatch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_installed(monkeypatch, CPU_VERSIONS | {"torchrec": "1.7.0"})
    assert doctor.diagnose() == 1
    assert "PROBLEM: torchrec: found 1.7.0, expected 1.8.0" in capsys.readouterr().out


def doctor_writing_to(stream: int) -> tuple[int, str]:
    """Its exit code, and what it says to standard error."""
    line = [sys.executable, LAUNCH / "doctor.py"]
    ended = subprocess.run(line, stdout=stream, stderr=subprocess.PIPE, text=True, check=False)
    return ended.returncode, ended.stderr


def test_doctor_ends_with_one_line_where_its_report_cannot_be_written() -> None:
    with Path("/dev/full").open("w") as full:
        said = "error: the report cannot be written: No space left on device\n"
        assert doctor_writing_to(full.fileno()) == (1, said)


def test_doctor_goes_on_where_nobody_reads_its_report() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert doctor_writing_to(writer) == (0, "")
    finally:
        os.close(writer)


def test_doctor_hints_at_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    said = "no C++ compiler no-such-compiler (CXX) is here: export and model.compile need one"
    assert said in [*doctor.hints()]


def test_make_installs_the_cpu_build_from_an_index_that_can_be_chosen(tmp_path: Path) -> None:
    commands = make("install", "DEVICE=cpu", f"VENV={tmp_path}/v", "TORCH_CPU_INDEX=file:///mine")
    assert "--index-url file:///mine" in commands
    assert "-e '.[cpu,dev]'" in commands
    assert "cuda" not in commands


def test_make_installs_the_cuda_build_without_the_cpu_index(tmp_path: Path) -> None:
    commands = make("install", "DEVICE=cuda", f"VENV={tmp_path}/v")
    assert "-e '.[cuda,dev]'" in commands
    assert "cpu" not in commands


def test_make_installs_the_triple_that_torch_names(tmp_path: Path) -> None:
    commands = make("install", "DEVICE=cpu", f"VENV={tmp_path}/v", "TORCH=2.11")
    assert " torch==2.11.0 fbgemm-gpu-cpu==1.6.0 " in commands
    assert " torchrec==1.6.1\n" in commands
    assert "2.13" not in commands


def test_make_train_is_the_documented_launch_line(tmp_path: Path) -> None:
    commands = make("train", f"VENV={tmp_path}/v")
    assert commands.rstrip().endswith(
        f"{tmp_path}/v/bin/torchx run dist.ddp -j 1x4 launch/train.py"
    )


@pytest.mark.parametrize(("device", "left_out"), [("cpu", "not gpu"), ("cuda", "")])
def test_make_check_leaves_out_what_the_machine_cannot_run_and_nothing_else(
    tmp_path: Path, device: str, left_out: str
) -> None:
    command = make("check", f"DEVICE={device}", f"VENV={tmp_path}/v").splitlines()[-1]
    assert command.startswith("CDP_WHOLE_MATRIX=1 ")
    assert command.endswith(f" -m '{left_out}'")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_links_of_the_checkout_lead_into_it() -> None:
    command = ["git", "-c", "safe.directory=*", "ls-files", "--stage"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    links = [line.split("\t")[1] for line in listed.splitlines() if line.startswith("120000")]
    assert links
    assert all((ROOT / link).resolve(strict=True).is_relative_to(ROOT) for link in links)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel installs, built from the checkout's files."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("cdp_torchrec", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    built = subprocess.run([*build, str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def from_wheel(unpacked: Path, directory: Path, *arguments: str | Path) -> str:
    """What `python -m cdp_torchrec ARGUMENTS` of the wheel prints, in a directory of its own."""
    start = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1));"
    start += "runpy.run_module('cdp_torchrec', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-I", "-c", start, str(unpacked), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_has_every_layer_of_the_checkout(unpacked: Path) -> None:
    shipped = unpacked / "cdp_torchrec" / "configs"
    layers = {path.relative_to(CONFIGS): path.read_text() for path in CONFIGS.rglob("*.toml")}
    assert len(layers) > 30
    assert {p.relative_to(shipped): p.read_text() for p in shipped.rglob("*.toml")} == layers


def test_commands_and_layers_of_a_wheel_are_found_by_name(unpacked: Path, tmp_path: Path) -> None:
    listed = from_wheel(unpacked, tmp_path)
    assert all(f"  {path.stem} " in listed for path in LAUNCH.glob("*.py"))
    layers = ["configs/data/trivago.toml", "interest/din.toml"]
    assert 'dir = "data/trivago"' in from_wheel(unpacked, tmp_path, "show_config", *layers)


@pytest.mark.slow
def test_a_wheel_trains(unpacked: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    settings = ["trainer.max_steps=2", "trainer.global_batch_size=256", "run.dir=run"]
    said = from_wheel(unpacked, tmp_path, "train", f"data.dir={tiny_dataset}", *settings)
    assert "GAUC" in said
    assert (tmp_path / "run" / "evaluation.json").is_file()


@pytest.mark.slow
def test_every_module_of_a_wheel_is_imported(unpacked: Path, tmp_path: Path) -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "cdp_torchrec").rglob("*.py")
        if path.name != "__init__.py"
    }
    code = """
import sys, importlib, importlib.metadata as m
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Of the extra `spark`, and of CUDA builds of torch.
        assert error.name.split(".")[0] in ("sqlglot", "pyspark", "py4j", "triton"), (name, error)
import cdp_torchrec
print(cdp_torchrec.__file__)
print([e.value for e in m.distribution('cdp_torchrec').entry_points if e.name == 'dist'])
"""
    command = [sys.executable, "-I", "-c", code, str(unpacked), *sorted(modules)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    file, components = done.stdout.splitlines()
    assert file == str(unpacked / "cdp_torchrec" / "__init__.py")
    assert components == "['cdp_torchrec.distributed.dist']"


def test_the_container_recipe_installs_with_make_and_copies_what_is_there() -> None:
    recipe = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    instructions = [line for line in recipe.splitlines() if line and not line.startswith("#")]
    [installed] = [line for line in instructions if line.startswith("RUN make ")]
    assignments = dict(word.split("=", 1) for word in shlex.split(installed)[3:])
    variables = set(re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert shlex.split(installed)[2] == "install" and set(assignments) <= variables
    given = {line.split()[1].partition("=")[0] for line in instructions if line[:4] == "ARG "}
    assert {"DEVICE", "TORCH"} <= given
    copied = [path for line in instructions if line[:5] == "COPY " for path in line.split()[1:-1]]
    assert len(copied) > 5 and all((ROOT / path).exists() for path in copied)
    assert {"pyproject.toml", "cdp_torchrec/known_versions.py"} <= {*copied}
