"""Whether a command of the pages names scripts, layers and keys that exist."""

import re
from pathlib import Path

from cdp_torchrec.commands.benchmark import BENCHMARKS
from cdp_torchrec.compare.config import CompareConfig
from cdp_torchrec.config import Config, load_config
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.synthetic.config import SyntheticConfig
from cdp_torchrec.distill.config import DistillExperimentConfig
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.planning.config import PlanningExperimentConfig
from cdp_torchrec.planning.outside_config import planned_config, without_flag
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.serving.predict_config import PredictConfig
from cdp_torchrec.serving.server.config import ServerConfig
from tests.paths import CONFIGS, ROOT

SETTINGS: dict[str, type[Config]] = {
    "train": ExperimentConfig,
    "evaluate": ExperimentConfig,
    "show_config": ExperimentConfig,
    "compare": CompareConfig,
    "plan_sharding": PlanningExperimentConfig,
    "export": ExportedConfig,
    "serve": ServerConfig,
    "predict": PredictConfig,
    "distill": DistillExperimentConfig,
    "prepare_data synthetic": SyntheticConfig,
    "prepare_data generic": MappingConfig,
    **{f"benchmark {name}": benchmark.CONFIG for name, benchmark in BENCHMARKS.items()},
}
"""What key=value of a command sets."""
_WITH_PARTS = ("benchmark", "prepare_data")
_SCRIPT = re.compile(r"launch/(\w+)\.py")
_ENVIRONMENT = re.compile(r"[A-Z_]+=")
_SETTING = re.compile(r"[a-z_]+(\.[\w-]+)*=")


def check(words: list[str], *, made_here: set[str]) -> None:
    """Look at a command without running it.

    Args:
        words: of the command.
        made_here: files that earlier commands of its page write.

    Raises:
        AssertionError: no such script, file, target or program.
        ConfigError: a key or its value.
    """
    match [word for word in words if not _ENVIRONMENT.match(word)]:
        case ["make", *targets]:
            known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(targets) <= set(known), f"make has the targets {known}"
        case ["python", "-m", "pytest", *arguments]:
            paths = [a for a in arguments if a.startswith("tests")]
            assert all((ROOT / path).exists() for path in paths), paths
        case ["curl" | "openssl" | "docker", *_]:
            pass
        case ["cdp_torchrec", "--help"]:
            pass
        case ["cdp_torchrec", command, *arguments]:
            assert (ROOT / "launch" / f"{command}.py").is_file(), f"no command {command}"
            _check_arguments(command, arguments, made_here)
        case ["torchrun", *_, script] if script in made_here:
            pass
        case ["python" | "torchx" | "torchrun", *arguments]:
            scripts = [a for a in arguments if _SCRIPT.fullmatch(a)]
            assert len(scripts) == 1, "expected one script of launch/"
            assert (ROOT / scripts[0]).is_file(), f"{scripts[0]} does not exist"
            script = _SCRIPT.fullmatch(scripts[0])
            assert script is not None
            _check_arguments(script[1], arguments[arguments.index(scripts[0]) + 1 :], made_here)
        case _:
            raise AssertionError(f"the pages have no program {words[0]!r}")


def _check_arguments(command: str, arguments: list[str], made_here: set[str]) -> None:
    if command in _WITH_PARTS and arguments and not arguments[0].startswith("-"):
        command, arguments = f"{command} {arguments[0]}", arguments[1:]
    arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
    if command == "plan_sharding":
        arguments = without_flag(arguments)
    written = output_of(arguments)
    layers = [a for a in arguments if a.endswith(".toml") and "=" not in a and a != written]
    settings = [a for a in arguments if _SETTING.match(a)]
    # The preparation of a dataset writes its starter.toml.
    made = [a for a in layers if a in made_here or a.endswith("/starter.toml")]
    if made or "--help" in arguments:
        return
    if command not in SETTINGS:
        assert not layers and not settings, f"{command} takes no settings"
        return
    config = SETTINGS[command]
    if command == "plan_sharding":
        config = planned_config(arguments)
    own = [CONFIGS / "quickstart.toml"] if issubclass(config, ExperimentConfig) else []
    load_config(config, [*layers, *settings], default_layers=own)


def output_of(words: list[str]) -> str | None:
    """What a command writes, if it says so."""
    return words[words.index("--output") + 1] if "--output" in words else None


def check_layer(text: str, command: str, folder: Path) -> None:
    """Load a TOML block as a layer of a command's settings.

    Raises:
        ConfigError: what is wrong with it.
    """
    (folder / "configs").symlink_to(CONFIGS)
    layer = folder / "layer.toml"
    layer.write_text(text)
    config = SETTINGS[command]
    if command == "plan_sharding":
        config = planned_config([str(layer)])
    own = [str(CONFIGS / "quickstart.toml")] if issubclass(config, ExperimentConfig) else []
    load_config(config, [*own, str(layer)])
