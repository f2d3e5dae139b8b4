"""Latency is that of the models it names, asked for the same requests in alternating rounds."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cdp_torchrec.benchmark.latency import denoiser_cost as denoiser_cost_module
from cdp_torchrec.benchmark.latency.command import open_cdp_run
from cdp_torchrec.benchmark.latency.config import Form
from cdp_torchrec.benchmark.latency.contestants import (
    Contestant,
    make_contestants,
    make_scorer,
)
from cdp_torchrec.benchmark.latency.denoiser_cost import (
    DenoiserCost,
    MatrixRate,
    denoiser_cost,
    matrix_rate,
)
from cdp_torchrec.benchmark.latency.report import (
    LatencyReport,
    Quality,
    as_json,
    as_markdown,
    headline,
)
from cdp_torchrec.benchmark.latency.rounds import Timing, time_rounds
from cdp_torchrec.commands import benchmark
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.diffusion.config import DenoiserConfig
from cdp_torchrec.diffusion.denoiser import Denoiser
from cdp_torchrec.experiment import train
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.interest import CdpInterest
from cdp_torchrec.serving import compile
from cdp_torchrec.stored_run import evaluate_run, open_run
from cdp_torchrec.timer import Timer, Times
from tests import untuned
from tests.clock import Clock
from tests.paths import CONFIGS
from tests.squeeze import squeezed
from tests.whole_matrix import only_whole

CPU = torch.device("cpu")
SETTINGS = [
    "benchmark.candidates=[1, 5]",
    "benchmark.num_inference_steps=[1, 3]",
    'benchmark.forms=["eager"]',
    "benchmark.num_requests=2",
    "benchmark.num_rounds=3",
]


def train_run(interest: str, dataset: Path, run_dir: Path) -> Path:
    settings = [
        f"data.dir={dataset}",
        f"run.dir={run_dir}",
        "trainer.max_steps=3",
        "trainer.global_batch_size=256",
    ]
    layers = [CONFIGS / "quickstart.toml", CONFIGS / "interest" / f"{interest}.toml"]
    train(load_config(ExperimentConfig, [*map(str, layers), *settings]), CPU)
    return run_dir


@pytest.fixture(scope="module")
def run_dir(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory, one_rank: None) -> Path:
    """A short run of CDP, and beside it, as its student, the same run once more."""
    folder = tmp_path_factory.mktemp("runs")
    train_run("cdp_timestep", tiny_dataset, folder / "run")
    shutil.copytree(folder / "run", folder / "run-student")
    return folder / "run"


# --- what is timed -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contestants(run_dir: Path) -> dict[str, Contestant]:
    run = open_cdp_run(run_dir, SETTINGS)
    arch = run.load(CPU).model.ranking_arch.sets[0]
    found = make_contestants(run.config, run.config.benchmark, arch, CPU)
    return {contestant.name: contestant for contestant in found}


@pytest.mark.slow
def test_cdp_is_the_trained_model_at_each_number_of_steps(
    contestants: dict[str, Contestant], run_dir: Path
) -> None:
    trained = open_cdp_run(run_dir, []).load(CPU).model.ranking_arch.state_dict()
    assert list(contestants) == ["none", "pooled", "cdp 1 step", "cdp 3 steps"]
    for steps, name in ((1, "cdp 1 step"), (3, "cdp 3 steps")):
        arch = contestants[name].arch
        assert isinstance(arch.interest, CdpInterest) and not arch.training
        assert len(arch.interest.steps) == contestants[name].num_inference_steps == steps
        for key, tensor in arch.state_dict().items():
            assert torch.equal(tensor, trained[key])


def test_all_models_are_asked_for_the_same_candidates(
    contestants: dict[str, Contestant],
) -> None:
    requests = {name: c.requests.inputs(5) for name, c in contestants.items()}
    of_cdp = requests["cdp 1 step"]
    assert len(of_cdp) == 2
    assert not torch.equal(of_cdp[0]["key"], of_cdp[1]["key"])
    for inputs in requests.values():
        for mine, theirs in zip(inputs, of_cdp, strict=True):
            for name in ("key", "item_id", "category_id", "numbers", "request_index"):
                assert torch.equal(mine[name], theirs[name])


def test_a_longer_list_repeats_the_candidates_of_the_request(
    contestants: dict[str, Contestant],
) -> None:
    requests = contestants["none"].requests
    for short, long in zip(requests.inputs(8), requests.inputs(20), strict=True):
        item_id = short["item_id"][:8]
        assert torch.equal(long["item_id"][:20], item_id.repeat(3)[:20])
        assert len(long["item_id"]) == 22  # and two places of padding, as in an artifact


def test_a_round_asks_all_models_for_the_same_request_after_warming_up() -> None:
    clock = Clock()
    asked: list[tuple[str, int]] = []

    def scorer(name: str, seconds: float) -> Callable[..., torch.Tensor]:
        def score(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            asked.append((name, int(inputs["key"])))
            clock.wait(seconds)
            return inputs["key"]

        return score

    scorers = {"none": scorer("none", 0.001), "cdp": scorer("cdp", 0.004)}
    inputs = {name: [{"key": torch.tensor(n)} for n in range(2)] for name in scorers}
    found = time_rounds(scorers, inputs, Timer(clock=clock), num_rounds=4)
    counted = asked[-8:]
    assert [name for name, _ in asked] == ["none", "cdp"] * (len(asked) // 2)
    assert all(a[1] == b[1] for a, b in zip(asked[::2], asked[1::2], strict=True))
    assert [key for _, key in counted[::2]] == [0, 1, 0, 1]
    assert len(asked) > 8
    assert found["cdp"].ms == pytest.approx([4.0] * 4)
    assert found["cdp"].added_to(found["none"]) == pytest.approx(3.0)


@only_whole
@pytest.mark.slow
@pytest.mark.parametrize("form", ["exported", "compiled"])
def test_a_compiled_model_scores_as_the_eager_one(
    contestants: dict[str, Contestant],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: Form,
) -> None:
    monkeypatch.setattr(compile, "_INDUCTOR_CPU", untuned.INDUCTOR)
    contestant = contestants["pooled"]  # programs of CDP are compared in tests/test_compile.py
    with torch.inference_mode():
        eager, other = (make_scorer(contestant, f, tmp_path) for f in ("eager", form))
        for inputs in contestant.requests.inputs(5):
            torch.testing.assert_close(other(inputs)[:5], eager(inputs)[:5], rtol=0, atol=1e-5)


# --- the denoiser's work -------------------------------------------------------------------------


def make_denoiser(join: str, num_hidden_layers: int = 1) -> Denoiser:
    config = load_config(
        DenoiserConfig, [f"condition_join={join}", f"num_hidden_layers={num_hidden_layers}"]
    )
    return Denoiser(config, dim=6, condition_dim=5, num_train_timesteps=10)


@pytest.mark.parametrize("join", ["add", "film", "adaln_zero"])
@pytest.mark.parametrize("num_hidden_layers", [1, 3])
def test_floating_point_operations_are_those_that_pytorch_counts(
    join: str, num_hidden_layers: int
) -> None:
    denoiser = make_denoiser(join, num_hidden_layers)
    cost = denoiser_cost(denoiser, num_candidates=7, num_inference_steps=4)
    modulation = denoiser.modulation(torch.ones(7, 5))
    with FlopCounterMode(display=False) as counter:
        for _ in range(4):
            denoiser(torch.ones(7, 6), modulation)
    assert cost.flops == counter.get_total_flops()


def test_bytes_are_those_of_every_tensor_once() -> None:
    denoiser = make_denoiser("adaln_zero")
    network = denoiser.network
    state, result = torch.ones(7, 6), torch.ones(7, 6)
    of_condition = denoiser.modulation(torch.ones(7, 5))
    of_time = denoiser.time_modulation(torch.arange(4))
    parameters = [*network.first.parameters(), *network.last.parameters()]
    tensors = [*parameters, state, result, of_condition, of_time]
    cost = denoiser_cost(denoiser, num_candidates=7, num_inference_steps=4)
    assert cost.bytes == sum(tensor.nbytes for tensor in tensors)


def test_rates_are_of_products_of_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(torch, "mm", lambda *_, out: clock.wait(0.01))
    rate = matrix_rate(make_denoiser("add"), 7, CPU, Timer(clock=clock))
    assert rate.same_shapes == pytest.approx(2 * 7 * (6 * 24 + 24 * 6) / 0.02 / 1e9)
    assert rate.large == pytest.approx(2 * 1024**3 / 0.01 / 1e9)


# --- quality -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_measures_every_setting_and_the_student(
    run_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cdp_torchrec.benchmark.latency.command.init_process_group", lambda _: CPU)
    monkeypatch.setattr(denoiser_cost_module, "_TRIALS", 1)
    output = f"benchmark.output={tmp_path / 'out'}"
    benchmark.main(["latency", str(run_dir), *SETTINGS, output])
    text = (tmp_path / "out" / "latency.md").read_text()
    assert capsys.readouterr().out.rstrip("\n").endswith(text.rstrip("\n"))
    assert "| cdp 3 steps | eager | 5 |" in squeezed(text)
    assert "| student | 1 |" in squeezed(text)
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")

    numbers = json.loads((tmp_path / "out" / "latency.json").read_text())
    models = {(t["model"], t["candidates"]) for t in numbers["latency"]}
    names = ("none", "pooled", "cdp 1 step", "cdp 3 steps")
    assert models == {(name, size) for name in names for size in (1, 5)}
    cost = numbers["denoiser"]["cost"]
    assert cost["cdp 3 steps"]["flops"] == 3 * cost["cdp 1 step"]["flops"]

    quality = numbers["quality"]
    settings = [(q["name"], q["num_inference_steps"]) for q in quality]
    of_run = [(sampler, steps) for sampler in ("ddim", "dpmpp_2m") for steps in (1, 3)]
    assert settings == [*of_run, ("student", 1)]
    sampling = ["model.interest.sampler=dpmpp_2m", "model.interest.num_inference_steps=3"]
    run = open_run(run_dir, sampling, ExperimentConfig)
    alone = evaluate_run(run, CPU, write_predictions=False).report
    assert quality[3]["gauc"] == pytest.approx(alone.gauc, abs=1e-9)
    assert quality[0]["gauc"] == quality[2]["gauc"]  # one step is one step, with every sampler
    assert quality[0]["gauc"] == quality[4]["gauc"]  # and the student is the same run
    assert quality[0]["gauc"] != quality[1]["gauc"]

    benchmark.main(["latency", str(run_dir), *SETTINGS, output, "benchmark.quality=false"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"latency.md", "latency.json"}


def test_a_student_of_which_nothing_is_measured_is_refused(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"student = .*: has no effect with benchmark.quality"):
        open_cdp_run(run_dir, [f"benchmark.student={run_dir}", "benchmark.quality=false"])


@pytest.mark.slow
def test_steps_between_levels_of_evidence_are_measured_like_others(
    tiny_dataset: Path, tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdp_torchrec.benchmark.latency.command.init_process_group", lambda _: CPU)
    monkeypatch.setattr(denoiser_cost_module, "_TRIALS", 1)
    run_dir = train_run("cdp", tiny_dataset, tmp_path / "evidence")
    with pytest.raises(ConfigError, match=r"found 20, but .* level 15 of the evidence; .* 1 to 15"):
        open_cdp_run(run_dir, ["benchmark.num_inference_steps=[1, 20]"])
    possible = open_cdp_run(run_dir, []).config.benchmark
    assert (possible.num_inference_steps, possible.samplers) == ((1, 2, 4, 8), ("ddim",))
    with pytest.raises(ConfigError, match=r"only a run of one set can be measured at several"):
        open_cdp_run(run_dir, ["model.num_embedding_sets=2"])
    with pytest.raises(ConfigError, match=r"has one sampler, benchmark\.samplers=\[\"ddim\"\]"):
        open_cdp_run(run_dir, ['benchmark.samplers=["ddim", "dpmpp_2m"]'])
    benchmark.main(["latency", str(run_dir), *SETTINGS])
    numbers = json.loads((run_dir / "latency" / "latency.json").read_text())
    assert {t["model"] for t in numbers["latency"]} > {"cdp 1 step", "cdp 3 steps"}
    assert [quality["num_inference_steps"] for quality in numbers["quality"]] == [1, 3]


def test_a_run_that_has_no_steps_to_measure_is_refused(
    tiny_dataset: Path, tmp_path: Path, one_rank: None
) -> None:
    run_dir = train_run("pooled", tiny_dataset, tmp_path / "pooled")
    with pytest.raises(ConfigError, match=r"model.interest.kind = 'pooled': only a run of 'cdp'"):
        open_cdp_run(run_dir, [])


def test_more_steps_than_the_schedule_has_are_refused(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"benchmark.num_inference_steps: found 101, but"):
        open_cdp_run(run_dir, ["benchmark.num_inference_steps=[4, 101]"])


# --- figures -------------------------------------------------------------------------------------


def timing(name: str, num_candidates: int, ms: list[float], base: list[float]) -> Timing:
    times = Times(np.array(ms))
    return Timing(name, "eager", num_candidates, times, times.added_to(Times(np.array(base))))


NONE = [1.0, 1.5, 1.0, 9.0]
REPORT = LatencyReport(
    device="1 CPU thread",
    frontier_candidates=100,
    timings=[
        timing("none", 100, NONE, NONE),
        timing("cdp 1 step", 100, [1.5, 2.0, 1.6, 9.5], NONE),
        timing("cdp 5 steps", 100, [1.9, 2.5, 2.0, 9.9], NONE),
    ],
    qualities=[Quality("ddim", 1, 0.75, math.nan), Quality("ddim", 5, 0.76, 0.7)],
    steps={"cdp 1 step": 1, "cdp 5 steps": 5},
    costs={"cdp 1 step": DenoiserCost(10_000, 500), "cdp 5 steps": DenoiserCost(50_000, 600)},
    rate=MatrixRate(same_shapes=0.5, large=2.0),
)


def test_added_milliseconds_are_medians_of_differences_within_rounds() -> None:
    assert REPORT.added_ms(1) == pytest.approx(0.5)
    assert REPORT.added_ms(5) == pytest.approx(0.95)
    assert REPORT.added_ms(2) is None
    assert "+0.500 ms at 1 steps, +0.950 ms at 5 steps (median)" in headline(REPORT)


def test_a_call_is_what_further_steps_add_to_the_fastest_round() -> None:
    assert REPORT.call_ms() == pytest.approx((1.9 - 1.5) / 4)
    rate = REPORT.loop_rate()
    assert rate == pytest.approx(10_000 / 0.1 / 1e6)
    assert "100.0 us a call, 0.1 GFLOP/s, 20% of torch.mm at the same shapes, 5%" in as_markdown(
        REPORT
    )


def test_one_number_of_steps_says_nothing_about_a_call() -> None:
    report = replace(REPORT, steps={"cdp 1 step": 1})
    assert report.call_ms() is None and report.loop_rate() is None
    assert "Inside the denoising loop" not in as_markdown(report)


def test_tables_show_percentiles_and_undefined_metrics() -> None:
    shown = squeezed(as_markdown(REPORT))
    assert "| cdp 1 step | eager | 100 | 1.800 | 7.250 | 9.275 | 1.500 | +0.500 |" in shown
    assert "| none | eager | 100 | 1.250 | 6.750 | 8.775 | 1.000 | |" in shown
    assert "| ddim | 1 | +0.500 | 0.75000 | - |" in shown
    numbers = json.loads(json.dumps(as_json(REPORT)))
    assert numbers["latency"][1]["p90_ms"] == pytest.approx(7.25)
    assert math.isnan(numbers["quality"][0]["gauc"])
