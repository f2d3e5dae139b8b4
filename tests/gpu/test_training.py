"""A training on one GPU is that of the CPU; the bodies of these tests also run on the CPU alone."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from cdp_torchrec.config import load_config
from cdp_torchrec.experiment import train
from cdp_torchrec.experiment_config import ExperimentConfig
from tests.paths import CONFIGS
from tests.runs import DEVICES, losses, one_rank_on

SETTINGS = (
    "data.history.max_length=40",
    "model.embedding_dim=8",
    "model.embedding_init_std=0.1",
    "sharding.small_table_rows=20",
    "optimizer.sparse.lr=0.01",
    "trainer.global_batch_size=256",
    "trainer.max_steps=20",
    "trainer.log_every_steps=1",
    "trainer.validate_every_steps=10",
)
ADAM = ("optimizer.sparse.kind=adam",)
ADAGRAD = ("optimizer.sparse.kind=rowwise_adagrad",)
ZCH = "data.vocabulary.{}.managed_collision={{zch_size=64,buckets=4,eviction_interval=4}}"
MANAGED = (*ADAGRAD, ZCH.format("user"), ZCH.format("item"))
CACHED = 'sharding.tables.item={kernels=["fused_uvm_caching"],cache_load_factor=0.5}'


@dataclass(frozen=True)
class Case:
    """A training, and the one in float32 on the CPU that it is to reach."""

    of_reference: tuple[str, ...]
    beyond: tuple[str, ...]
    """Settings that the reference does not have."""
    tolerance: float
    """Of a loss within 20 steps: sums have another order on a GPU, and Adam another epsilon."""


ANYWHERE = {
    "adam": Case(ADAM, (), 1e-4),
    "rowwise_adagrad": Case(ADAGRAD, (), 1e-4),
    "bfloat16": Case(ADAGRAD, ("model.precision=bfloat16",), 0.1),
    "managed_collision": Case(MANAGED, (), 1e-4),
}
ON_A_GPU = {
    "compiled": Case(ADAGRAD, ("model.compile=true",), 1e-4),  # on a CPU it takes a minute
    "cached_in_gpu_memory": Case(ADAM, (CACHED,), 1e-4),
    "prefetched": Case(ADAM, (CACHED, "sharding.prefetch=true"), 1e-4),
}

Train = Callable[..., list[float]]


@pytest.fixture(scope="module")
def trained(tiny_dataset: Path) -> Train:
    """Losses of a short training of CDP on a device."""

    def run(device: str, run_dir: Path, *settings: str) -> list[float]:
        layer = str(CONFIGS / "interest" / "cdp.toml")
        data = (f"data.dir={tiny_dataset}", f"run.dir={run_dir}")
        config = load_config(ExperimentConfig, [layer, *SETTINGS, *settings, *data])
        with one_rank_on(device) as here:
            train(config, here)
        return losses(run_dir)

    return run


@pytest.fixture(scope="module")
def reference(trained: Train, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Losses of a short training on the CPU; each is done once."""
    return cache(
        lambda *settings: trained("cpu", tmp_path_factory.mktemp("cpu") / "run", *settings)
    )


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ANYWHERE)
def test_a_training_reaches_the_losses_of_float32_on_the_cpu(
    trained: Train, reference: Train, tmp_path: Path, name: str, device: str
) -> None:
    case = ANYWHERE[name]
    found = trained(device, tmp_path / "run", *case.of_reference, *case.beyond)
    assert found == pytest.approx(reference(*case.of_reference), abs=case.tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_A_GPU)
def test_what_only_a_gpu_has_reaches_the_losses_of_the_cpu(
    trained: Train, reference: Train, tmp_path: Path, name: str
) -> None:
    case = ON_A_GPU[name]
    found = trained("cuda", tmp_path / "run", *case.of_reference, *case.beyond)
    assert found == pytest.approx(reference(*case.of_reference), abs=case.tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sparse", [ADAM, ADAGRAD], ids=["adam", "rowwise_adagrad"])
def test_a_run_is_continued_and_repeated_under_its_own_plan_to_the_same_losses(
    trained: Train, tmp_path: Path, sparse: tuple[str, ...], device: str
) -> None:
    whole = trained(device, tmp_path / "whole", *sparse)
    # Sums on a GPU come in any order.
    tolerance = 0.0 if device == "cpu" else 1e-5
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step-00000020")
    lines = (tmp_path / "half" / "metrics.jsonl").read_text().splitlines(keepends=True)
    at_ten = next(i for i, line in enumerate(lines) if '"step": 11' in line)
    (tmp_path / "half" / "metrics.jsonl").write_text("".join(lines[:at_ten]))
    continued = trained(device, tmp_path / "half", *sparse, "run.resume=true")
    assert continued == pytest.approx(whole, abs=tolerance)
    plan = f"sharding.plan={tmp_path / 'whole' / 'plan.json'}"
    planned = trained(device, tmp_path / "planned", *sparse, plan)
    assert planned == pytest.approx(whole, abs=tolerance)
