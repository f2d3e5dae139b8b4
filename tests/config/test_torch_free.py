"""A configuration is read, and a mistake in it reported, before torch is imported."""

import subprocess
import sys

import pytest

from tests.paths import CONFIGS, ROOT

HEAVY = {"torch", "torchrec", "numpy", "pyarrow", "duckdb"}
SETTINGS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "cdp_torchrec").rglob("*config.py")
)


def imported_by(code: str) -> set[str]:
    """Large libraries that a fresh interpreter has imported after this code."""
    code += f"\nimport sys; print(*({HEAVY} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_no_module_of_settings_imports_torch_or_numpy() -> None:
    assert len(SETTINGS) > 10
    assert imported_by("\n".join(f"import {name}" for name in SETTINGS)) == set()


def test_an_experiment_is_read_from_its_layers_without_torch() -> None:
    layers = [str(CONFIGS / name) for name in ("quickstart.toml", "interest/cdp.toml")]
    code = (
        "from cdp_torchrec.config import load_config\n"
        "from cdp_torchrec.experiment_config import ExperimentConfig\n"
        f"assert load_config(ExperimentConfig, {layers}).model.interest.kind == 'cdp'"
    )
    assert imported_by(code) == set()


@pytest.mark.slow
def test_the_names_of_the_interest_package_are_found_when_asked_for() -> None:
    assert imported_by("import cdp_torchrec.interest") == set()
    code = "from cdp_torchrec.interest import CdpConfig, CdpInterest, GatedPool, build_interest"
    assert "torch" in imported_by(code)
