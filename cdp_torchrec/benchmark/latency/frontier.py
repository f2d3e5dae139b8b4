"""Quality against latency: one CDP run measured at every sampler and number of steps."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from cdp_torchrec.benchmark.latency.config import LatencyBenchmarkConfig, LatencySettings
from cdp_torchrec.benchmark.latency.contestants import cdp_name, make_contestants
from cdp_torchrec.benchmark.latency.denoiser_cost import denoiser_cost, matrix_rate
from cdp_torchrec.benchmark.latency.report import LatencyReport, Quality
from cdp_torchrec.benchmark.latency.rounds import measure
from cdp_torchrec.diffusion.sampler import SamplingStep
from cdp_torchrec.distill.config import student_beside
from cdp_torchrec.distill.student import cdp_interest
from cdp_torchrec.evaluation import EvaluationSettings, evaluate
from cdp_torchrec.experiment import Experiment
from cdp_torchrec.progress import Stages, progress
from cdp_torchrec.run.saved import find_checkpoint
from cdp_torchrec.stored_run import StoredRun, load_checkpoint
from cdp_torchrec.timer import device_timer

_CLOSE_TO = 100


def measure_run(run: StoredRun[LatencyBenchmarkConfig], device: torch.device) -> LatencyReport:
    """Latency and quality of a CDP run.

    Args:
        run: of CDP, as the command opens it.
        device: where to compute.

    Raises:
        CheckpointError: a checkpoint does not fit the dataset, or there is none of the student.
    """
    config, latency = run.config, run.config.benchmark
    student = _student(run.directory, latency)
    stages = Stages("latency", total=3 if latency.quality else 2)
    stages.begin(f"read {run.checkpoint} and its test requests")
    experiment = run.load(device)
    arch = experiment.model.ranking_arch.sets[0]
    contestants = make_contestants(config, latency, arch, device)
    stages.begin(
        f"make {len(contestants)} models {' and '.join(latency.forms)}, and time each "
        f"{latency.num_rounds} times at {', '.join(map(str, latency.candidates))} candidates"
    )
    with tempfile.TemporaryDirectory() as scratch:
        timings = measure(contestants, latency, device, Path(scratch))
    at = min(latency.candidates, key=lambda n: abs(n - _CLOSE_TO))
    denoiser = cdp_interest(experiment).denoiser
    steps = {cdp_name(k): k for k in latency.num_inference_steps}
    if latency.quality:
        stages.begin("score the test split at each setting")
    return LatencyReport(
        device=_describe(device, latency.clock),
        frontier_candidates=at,
        timings=timings,
        qualities=list(_qualities(experiment, student, latency)) if latency.quality else [],
        steps=steps,
        costs={
            name: denoiser_cost(denoiser, num_candidates=at, num_inference_steps=k)
            for name, k in steps.items()
        },
        rate=matrix_rate(denoiser, at, device, device_timer(device)),
    )


def _qualities(
    experiment: Experiment, student: Path | None, latency: LatencySettings
) -> Iterator[Quality]:
    """Test metrics at each setting, then of the student; ends with the student's weights loaded."""
    settings = [(s, k) for s in latency.samplers for k in latency.num_inference_steps]
    measured: dict[tuple[int, tuple[SamplingStep, ...]], Quality] = {}
    for sampler, steps in progress(settings, "quality", unit="settings"):
        interest = cdp_interest(experiment)
        interest.set_sampling(sampler=sampler, num_inference_steps=steps)
        # Samplers are the same thing where they take the same steps: with one call, for example.
        taken = steps, interest.steps
        if taken not in measured:
            measured[taken] = _quality(experiment, sampler, steps)
        yield replace(measured[taken], name=sampler)
    if student is not None:
        load_checkpoint(experiment, student)
        cdp_interest(experiment).set_sampling(sampler=latency.samplers[0], num_inference_steps=1)
        yield _quality(experiment, "student", 1)


def _quality(experiment: Experiment, name: str, steps: int) -> Quality:
    model, optimizer = experiment.parallelized.model, experiment.parallelized.optimizer
    report = evaluate(
        model,
        optimizer,
        experiment.data.test,
        EvaluationSettings(
            experiment.device,
            experiment.loader,
            description=f"{name}, {steps} steps",
        ),
    )
    return Quality(name, steps, report.auc, report.gauc)


def _student(run_dir: Path, latency: LatencySettings) -> Path | None:
    """Checkpoint of the student; found before anything is compiled."""
    beside = student_beside(run_dir)
    if latency.student is None and not beside.is_dir():
        return None
    return find_checkpoint(latency.student or beside)


def _describe(device: torch.device, clock: str) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}, {clock} clock"
