"""The student imitates its teacher, and nothing but its denoiser learns."""

import copy
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import cdp_torchrec.distill.run as distillation
from cdp_torchrec.commands.distill import main
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.diffusion.config import DenoiserConfig
from cdp_torchrec.distill.config import DistillConfig, DistillExperimentConfig
from cdp_torchrec.distill.run import Distilled, distill_run
from cdp_torchrec.distill.student import train_student
from cdp_torchrec.experiment import train
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.interest import (
    CdpConfig,
    CdpInterest,
    GatedPool,
    InterestDims,
    InterestInput,
    build_interest,
)
from cdp_torchrec.model.config import ModelConfig
from cdp_torchrec.run.finite import NonFiniteError
from cdp_torchrec.run.monitor import Monitor
from cdp_torchrec.run.saved import find_checkpoint
from cdp_torchrec.stored_run import open_run

CPU = torch.device("cpu")
DIMS = InterestDims(user=4, query=4, item=8, item_attributes=8, context=4, scene=4, category=8)


def make_inputs(seed: int, batch: int = 64) -> InterestInput:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    numbers = torch.arange(batch)
    return InterestInput(
        user=normal(batch, 4),
        query=normal(batch, 4),
        item=normal(batch, 8),
        item_attributes=normal(batch, 8),
        context=normal(batch, 4),
        scene=normal(batch, 4),
        key=numbers + seed * batch,
        item_id=numbers,
        category_id=numbers,
        pool=GatedPool(sums=normal(batch, 1, 8), lengths=torch.ones(batch, 1)),
    )


@pytest.fixture(params=["clean_scaled", "noised"])
def teacher(request: pytest.FixtureRequest) -> CdpInterest:
    torch.manual_seed(0)
    config = CdpConfig(
        kind="cdp",
        start=request.param,
        latent_norm="layernorm",
        prediction_type="x0",
        denoiser=DenoiserConfig(condition_join="adaln_zero", num_hidden_layers=1),
        num_inference_steps=8,
    )
    module = build_interest(config, DIMS)
    assert isinstance(module, CdpInterest)
    for parameter in module.denoiser.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


@pytest.fixture
def student(teacher: CdpInterest) -> CdpInterest:
    student = copy.deepcopy(teacher)
    student.set_sampling(sampler="ddim", num_inference_steps=1)
    return student


def error(teacher: CdpInterest, student: CdpInterest) -> float:
    inputs = make_inputs(seed=10_000)
    with torch.no_grad():
        wanted, found = teacher(inputs).interest, student(inputs).interest
    return (found - wanted).square().mean().sqrt().item()


def distill(teacher: CdpInterest, student: CdpInterest, run_dir: Path) -> None:
    config = DistillConfig(max_steps=150)

    def batches() -> Iterator[InterestInput]:
        yield from (make_inputs(seed) for seed in range(config.max_steps))

    with Monitor(run_dir, total_steps=config.max_steps, quiet=True) as monitor:
        train_student(teacher, student, batches(), config, monitor)


def test_a_student_starts_as_the_one_step_sampler_of_its_teacher(
    teacher: CdpInterest, student: CdpInterest
) -> None:
    assert error(teacher, student) > 0.01
    teacher.set_sampling(sampler="ddim", num_inference_steps=1)
    assert error(teacher, student) == 0.0


def test_distillation_brings_the_student_to_its_teacher(
    teacher: CdpInterest, student: CdpInterest, tmp_path: Path, one_rank: None
) -> None:
    before = error(teacher, student)
    distill(teacher, student, tmp_path)
    assert error(teacher, student) < 0.5 * before


def test_distillation_changes_nothing_but_the_students_denoiser(
    teacher: CdpInterest, student: CdpInterest, tmp_path: Path, one_rank: None
) -> None:
    teacher_before = copy.deepcopy(teacher.state_dict())
    before = copy.deepcopy(student.state_dict())
    distill(teacher, student, tmp_path)
    assert all(torch.equal(teacher.state_dict()[n], v) for n, v in teacher_before.items())
    changed = {n for n, v in student.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {n for n in before if n.startswith("denoiser.")}


def test_other_steps_are_refused_where_the_configuration_does_not_allow_them(
    teacher: CdpInterest,
) -> None:
    with pytest.raises(ValueError, match="more than the 100 timesteps"):
        teacher.set_sampling(sampler="ddim", num_inference_steps=101)


def test_a_directory_in_use_is_refused_by_its_own_key(tmp_path: Path, one_rank: None) -> None:
    (tmp_path / "anything").touch()
    config = load_config(
        DistillExperimentConfig,
        ["data.dir=nowhere", "model.interest.kind=cdp", f"distill.dir={tmp_path}"],
    )
    run = mock.Mock(config=config)
    with pytest.raises(ConfigError, match=r"distill\.dir = '.*' is not empty"):
        distill_run(run, CPU)
    run.load.assert_not_called()


@pytest.mark.parametrize("argument", ["run.dir=elsewhere", "run.resume=true"])
def test_settings_of_the_teachers_run_are_refused(argument: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{argument}: the student .* distill\.dir"):
        main([str(tmp_path), argument])


@pytest.mark.parametrize(
    ("steps", "sets", "message"),
    [
        (1, 1, r"distill\.teacher_steps to 2 or more, at most 100"),
        (4, 2, r"model\.num_embedding_sets = 2: only a run of one set has one reverse process"),
    ],
)
def test_what_has_no_chain_to_distill_is_refused_before_anything_is_made(
    steps: int, sets: int, message: str
) -> None:
    interest = CdpConfig(kind="cdp", num_inference_steps=steps)
    model = ModelConfig(interest=interest, num_embedding_sets=sets)
    run = mock.Mock(**{"config.distill": DistillConfig(), "config.model": model})
    with pytest.raises(ConfigError, match=message):
        distill_run(run, CPU)
    run.load.assert_not_called()


# --- what is left of a distillation that did not end well -----------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory, one_rank: None) -> Path:
    """A run of CDP of two steps."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    settings = [
        f"data.dir={tiny_dataset}",
        f"run.dir={run_dir}",
        "model.embedding_dim=4",
        "model.interest.kind=cdp",
        "model.interest.num_inference_steps=2",
        "trainer.global_batch_size=64",
        "trainer.max_steps=2",
    ]
    train(load_config(ExperimentConfig, settings), CPU)
    return run_dir


def distilled_from(trained: Path, student: Path, *settings: str) -> Distilled:
    chosen = [f"distill.dir={student}", "distill.num_validation_batches=1", *settings]
    return distill_run(open_run(trained, chosen, DistillExperimentConfig), CPU)


@pytest.mark.slow
def test_the_relative_error_does_not_depend_on_what_fills_up_the_last_batch(
    trained: Path, tmp_path: Path, one_rank: None
) -> None:
    found = []
    for size in (64, 4096):  # more than the validation slice has
        settings = [f"trainer.global_batch_size={size}", "distill.num_validation_batches=1000"]
        student = [f"distill.dir={tmp_path / str(size)}", "distill.max_steps=1"]
        run = open_run(trained, [*settings, *student], DistillExperimentConfig)
        found.append(distill_run(run, CPU).one_step_error)
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number"),
    [("train_student", signal.SIGINT), ("write_evaluation", signal.SIGTERM)],
)
def test_an_interrupted_distillation_leaves_nothing_and_can_be_made_again(
    stage: str,
    number: signal.Signals,
    trained: Path,
    tmp_path: Path,
    one_rank: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(distillation, stage, lambda *_: signal.raise_signal(number))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            distilled_from(trained, tmp_path / "student")
    assert list(tmp_path.iterdir()) == []
    done = distilled_from(trained, tmp_path / "student", "distill.max_steps=1")
    assert done.run_dir == tmp_path / "student"
    assert json.loads((done.run_dir / "distillation.json").read_text())["max_steps"] == 1
    assert find_checkpoint(done.run_dir).is_dir()


def test_what_a_killed_distillation_left_is_no_run_and_is_replaced(
    trained: Path, tmp_path: Path, one_rank: None
) -> None:
    (tmp_path / ".student.partial-1a2b" / "checkpoints").mkdir(parents=True)
    distilled_from(trained, tmp_path / "student", "distill.max_steps=1")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


@pytest.mark.parametrize(
    ("max_steps", "message"),
    [
        (20, r"step 10: the loss is (nan|inf); lower the learning rate \(distill\.lr\)"),
        (1, r"step 1: the relative error is (nan|inf); lower the learning rate"),
    ],
)
def test_a_student_that_diverges_is_an_error_and_nothing_is_saved(
    max_steps: int, message: str, trained: Path, tmp_path: Path, one_rank: None
) -> None:
    with pytest.raises(NonFiniteError, match=message):
        distilled_from(
            trained,
            tmp_path / "student",
            "distill.lr=1e30",
            f"distill.max_steps={max_steps}",
        )
    assert list(tmp_path.iterdir()) == []
