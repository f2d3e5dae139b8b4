"""The training benchmark times the training of train.py, and its figures are of what it says."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from cdp_torchrec.benchmark.training import command
from cdp_torchrec.benchmark.training import contestants as contestants_module
from cdp_torchrec.benchmark.training.command import load_rows
from cdp_torchrec.benchmark.training.config import TrainingBenchmarkConfig, TrainingSettings
from cdp_torchrec.benchmark.training.contestants import (
    Contestant,
    plain_contestant,
    sharded_contestant,
)
from cdp_torchrec.benchmark.training.profile import KINDS, OTHER, kind_of, profile_training
from cdp_torchrec.benchmark.training.report import as_json, as_markdown
from cdp_torchrec.benchmark.training.rounds import (
    TrainingSpeed,
    measure_training,
    reading_ms,
    time_training,
)
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.distributed.config import RanksConfig
from cdp_torchrec.distributed.pipeline import train_pipeline
from cdp_torchrec.experiment import Experiment, build_experiment, train
from cdp_torchrec.timer import Timer, Times
from tests.clock import Clock
from tests.paths import CONFIGS
from tests.squeeze import squeezed

CPU = torch.device("cpu")
STEPS = 4
BATCH = 256

MakeExperiment = Callable[..., Experiment]


def settings(dataset: Path, *more: str) -> list[str]:
    return [
        str(CONFIGS / "data" / "quickstart.toml"),
        f"data.dir={dataset}",
        f"trainer.global_batch_size={BATCH}",
        "model.embedding_dim=8",
        *more,
    ]


@pytest.fixture
def make_experiment(tiny_dataset: Path, one_rank: None) -> MakeExperiment:
    def make(row: str, *more: str) -> Experiment:
        layers = [*settings(tiny_dataset, *more), str(CONFIGS / "interest" / f"{row}.toml")]
        return build_experiment(load_config(TrainingBenchmarkConfig, layers), CPU)

    return make


def losses(contestant: Contestant, num_steps: int = STEPS) -> list[float]:
    return [float(contestant.step().losses["loss"]) for _ in range(num_steps)]


# --- what trains ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adam", "rowwise_adagrad"])
def test_the_sharded_contestant_takes_the_steps_of_train(
    tiny_dataset: Path, tmp_path: Path, make_experiment: MakeExperiment, kind: str
) -> None:
    sparse = f"optimizer.sparse.kind={kind}"
    timed = losses(sharded_contestant("x", make_experiment("pooled", sparse), num_batches=STEPS))
    run = [f"run.dir={tmp_path}", f"trainer.max_steps={STEPS}", "trainer.log_every_steps=1", sparse]
    row = str(CONFIGS / "interest" / "pooled.toml")
    train(load_config(TrainingBenchmarkConfig, [*settings(tiny_dataset, *run), row]), CPU)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    trained = [line for line in lines if line["kind"] == "train"]
    assert timed == [line["loss"] for line in trained]
    assert all(line["latent_std"] > 0 for line in trained)


def test_the_plain_contestant_has_the_losses_of_the_sharded_one(
    make_experiment: MakeExperiment,
) -> None:
    # A second round over the batches: both have learned the same from the first.
    experiment = make_experiment("pooled", "optimizer.dense.max_gradient_norm=0.5")
    plain = plain_contestant("plain", experiment, num_batches=STEPS)
    sharded = sharded_contestant("sharded", experiment, num_batches=STEPS)
    found = losses(sharded, 2 * STEPS)
    assert losses(plain, 2 * STEPS) == pytest.approx(found, rel=1e-5)
    assert found[STEPS:] < found[:STEPS]


def test_batches_take_turns_and_are_the_first_of_the_training(
    make_experiment: MakeExperiment,
) -> None:
    experiment = make_experiment("pooled", "optimizer.dense.lr=1e-12", "optimizer.sparse.lr=1e-12")
    found = losses(sharded_contestant("x", experiment, num_batches=2), 4)
    assert found[0] != found[1]
    assert found[2:] == pytest.approx(found[:2])


def test_monitors_are_computed_at_the_steps_that_are_logged(
    make_experiment: MakeExperiment,
) -> None:
    contestant = sharded_contestant(
        "x", make_experiment("pooled", "trainer.log_every_steps=2"), num_batches=2
    )
    assert [bool(contestant.step().monitors) for _ in range(4)] == [False, True, False, True]


@pytest.mark.parametrize("prefetch", [False, True])
def test_the_pipeline_prefetches_as_train_does(
    make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, prefetch: bool
) -> None:
    asked: list[bool] = []

    def pipeline(*arguments: Any, prefetch: bool) -> Any:
        asked.append(prefetch)  # there is no cache to fill on a CPU
        return train_pipeline(*arguments, prefetch=False)

    monkeypatch.setattr(contestants_module, "train_pipeline", pipeline)
    experiment = make_experiment("pooled")
    experiment = replace(
        experiment, parallelized=replace(experiment.parallelized, prefetch=prefetch)
    )
    sharded_contestant("x", experiment, num_batches=1)
    assert asked == [prefetch]


def test_plain_tables_refuse_a_row_that_looks_up_single_behaviours(
    make_experiment: MakeExperiment,
) -> None:
    with pytest.raises(ConfigError, match=r"'din' looks up single .*set benchmark.plain=false"):
        plain_contestant("din", make_experiment("din"), num_batches=1)


# --- what is timed -------------------------------------------------------------------------------


def test_rounds_alternate_and_the_first_one_warms_up() -> None:
    clock, order = Clock(), []

    def contestant(name: str, seconds: float) -> Contestant:
        def step() -> Any:
            order.append(name)
            clock.wait(seconds)

        return Contestant(name, step)

    chosen = TrainingSettings(rounds=2, steps=3)
    found = time_training([contestant("a", 1.0), contestant("b", 2.0)], chosen, Timer(clock=clock))
    assert "".join(order) == 3 * "aaabbb"
    assert found["a"].ms == pytest.approx([3000, 3000])
    assert found["b"].ratio_to(found["a"]) == pytest.approx(2.0)


def test_the_time_to_read_is_the_median_of_batches_read_one_by_one() -> None:
    clock = Clock()

    class Batches:
        read: list[int] = []

        def positions(self, position: int, num_steps: int) -> list[int]:
            return list(range(position, position + 10 * num_steps, 10))

        def __getitem__(self, index: int) -> None:
            self.read.append(index)
            clock.wait(9.0 if index == 0 else 0.002)  # the first one opens files

    batches: Any = Batches()
    assert reading_ms(batches, Timer(clock=clock)) == pytest.approx(2.0)
    assert batches.read == list(range(0, 200, 10))


def test_shares_of_a_step_sum_to_one_and_name_its_work(make_experiment: MakeExperiment) -> None:
    contestant = sharded_contestant("x", make_experiment("pooled"), num_batches=2)
    shares = profile_training(contestant, CPU, num_steps=2)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert set(shares) <= {*KINDS, OTHER}
    assert {"embedding lookup", "matrix products", "optimizer"} <= set(shares)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("c10d::allreduce_", "communication"),
        ("## all2all_data:kjt splits ##", "communication"),
        ("[splits_dist]_[model.sparse_arch.embedding_bag_collection]", "communication"),
        ("aten::_embedding_bag", "embedding lookup"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::addcmul_", "optimizer"),
        ("aten::lerp_", "optimizer"),
        ("aten::addcmul", OTHER),  # of the denoiser
        ("aten::lerp", OTHER),  # of DIEN's recurrence
        ("autograd::engine::evaluate_function: LerpBackward1", OTHER),
        ("fbgemm::split_embedding_codegen_lookup_adagrad_function", "embedding lookup"),
        ("Optimizer.step#AdamW.step", "optimizer"),
        ("aten::relu", OTHER),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_nn_n_tilesize32x32x8_stage3", "matrix products"),
        ("void cutlass::Kernel2<cutlass_80_simt_sgemm_64x64_8x5_nt_align1>", "matrix products"),
        ("split_embedding_codegen_forward_unweighted_kernel", "embedding lookup"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<", "optimizer"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "communication"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add", OTHER),
    ],
)
def test_an_operation_is_of_one_kind(operation: str, kind: str) -> None:
    assert kind_of(operation) == kind


# --- the command ---------------------------------------------------------------------------------


def test_every_row_is_measured_beside_the_first(tiny_dataset: Path, one_rank: None) -> None:
    small = [
        'benchmark.rows=["pooled", "cdp_timestep_mean"]',
        "benchmark.rounds=2",
        "benchmark.steps=2",
    ]
    speed = measure_training(load_rows(settings(tiny_dataset, *small)), CPU)
    names = ["pooled", "cdp_timestep_mean", "pooled, plain PyTorch"]
    assert list(speed.rounds) == list(speed.shares) == names
    assert all(len(found.ms) == 2 and found.fastest > 0 for found in speed.rounds.values())
    content = as_json(speed)
    json.dumps(content)
    assert content["rows"]["pooled"]["ratio"] == 1.0
    assert list(speed.reading_ms) == names[:2] and min(speed.reading_ms.values()) > 0


def test_speeds_and_ratios_are_of_known_times() -> None:
    speed = TrainingSpeed(
        settings=TrainingSettings(rounds=3, steps=10),
        world_size=2,
        device="cpu",
        global_batch_size=1000,
        reading_ms={"pooled": 1.25},
        rounds={
            "pooled": Times(np.array([100.0, 1000.0, 200.0])),
            "din": Times(np.array([200.0, 2000.0, 400.0])),
        },
        shares={"pooled": {"optimizer": 1.0}, "din": {"optimizer": 0.25, OTHER: 0.75}},
    )
    shown = squeezed(as_markdown(speed))
    header = "row | impressions/s | slowest | fastest | x pooled | reading ms | optimizer"
    assert f"| {header} | {OTHER} |" in shown
    assert "| pooled | 50,000 | 10,000 | 100,000 | 1.00 | 1.2 (6.2%) | 100% | 0% |" in shown
    assert "| din | 25,000 | 5,000 | 50,000 | 0.50 | - | 25% | 75% |" in shown
    assert "2 ranks (cpu), global batch 1000" in shown
    assert as_json(speed)["rows"]["din"]["impressions_per_s"] == [50_000.0, 5_000.0, 25_000.0]


def test_rows_differ_in_the_interest_module_alone(tiny_dataset: Path) -> None:
    rows = load_rows(settings(tiny_dataset, 'benchmark.rows=["twin", "pooled"]'))
    assert [(n, c.model.interest.kind) for n, c in rows.items()] == [
        ("twin", "twin"),
        ("pooled", "pooled"),
    ]
    twin, pooled = rows.values()
    model = twin.model.model_copy(update={"interest": pooled.model.interest})
    assert twin.model_copy(update={"model": model}) == pooled


def test_without_a_layer_the_synthetic_log_is_trained_on() -> None:
    assert {str(c.data.dir) for c in load_rows([]).values()} == {"data/synthetic"}
    assert list(load_rows([])) == ["pooled", "cdp", "cdp_paper"]


def test_the_ranks_wait_as_long_as_the_layers_say(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(command, "init_process_group", joined)
    with pytest.raises(InterruptedError):
        command.run(settings(tiny_dataset, "ranks.collective_timeout_s=7"))
    joined.assert_called_once_with(RanksConfig(collective_timeout_s=7))


def test_a_row_may_have_settings_of_its_own(tiny_dataset: Path) -> None:
    """Fails where another row, which has no such key, completes the configuration."""
    longest = "model.interest.max_length=7"
    rows = load_rows(settings(tiny_dataset, 'benchmark.rows=["sasrec"]', longest))
    assert rows["sasrec"].model.interest.model_dump()["max_length"] == 7
    with pytest.raises(ConfigError, match=r"model\.interest\.max_length: unknown key"):
        load_rows(settings(tiny_dataset, 'benchmark.rows=["sasrec", "pooled"]', longest))
