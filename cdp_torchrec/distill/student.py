"""The training of a student's denoiser, and its error."""

# B impressions, D latent dim

import math
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cdp_torchrec.data.loader import EvaluationBatches, TrainBatches
from cdp_torchrec.distill.config import DistillConfig
from cdp_torchrec.distributed.process_group import world_size
from cdp_torchrec.experiment import Experiment
from cdp_torchrec.interest import CdpInterest, InterestInput
from cdp_torchrec.run.finite import NonFiniteError
from cdp_torchrec.run.monitor import Monitor
from cdp_torchrec.trainer import average

_LOG_EVERY_STEPS = 10


def train_student(
    teacher: CdpInterest,
    student: CdpInterest,
    inputs: Iterator[InterestInput],
    config: DistillConfig,
    monitor: Monitor,
) -> None:
    """Fit the student's denoiser to z* of the teacher; collective.

    Args:
        teacher: CDP at K steps, not changed.
        student: CDP at one step; only its denoiser is changed.
        inputs: of config.max_steps batches.
        config: the distillation.
        monitor: shows progress.

    Raises:
        NonFiniteError: the loss became infinite or not a number.
    """
    parameters = list(student.denoiser.parameters())
    optimizer = torch.optim.Adam(parameters, lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.max_steps)
    for step, batch in enumerate(inputs, start=1):
        wanted, found = _both(teacher, student, batch)
        loss = (found - wanted).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        _average_gradients(parameters)
        optimizer.step()
        schedule.step()
        monitor.advance()
        if step % _LOG_EVERY_STEPS == 0 or step == config.max_steps:
            values = {"distillation_loss": average({"loss": loss.detach()})["loss"].item()}
            if not math.isfinite(values["distillation_loss"]):
                raise diverged(step, "loss", values["distillation_loss"])
            monitor.show(values)
            monitor.record("train", step, values)


def diverged(step: int, name: str, value: float) -> NonFiniteError:
    """What to raise where a step gave a value that is not finite."""
    return NonFiniteError(
        f"step {step}: the {name} is {value}; lower the learning rate (distill.lr)"
    )


@torch.no_grad()
def relative_error(
    experiment: Experiment, teacher: CdpInterest, student: CdpInterest, config: DistillConfig
) -> float:
    """Root mean square of the error in z* over that of z*; collective.

    Measured on the validation slice, or on the test split of a run without one; what fills up the
    last batch does not count.
    """
    data = experiment.data
    batches = data.validation or data.test
    items = list(range(min(config.num_validation_batches, len(batches))))
    sums = torch.zeros(2, dtype=torch.float64, device=experiment.device)
    for inputs, weights in _inputs(experiment, batches, items):
        wanted, found = _both(teacher, student, inputs)
        squares = torch.stack([(found - wanted).square().sum(dim=1), wanted.square().sum(dim=1)])
        sums += squares.double() @ weights.double()
    dist.all_reduce(sums)
    return (sums[0] / sums[1]).sqrt().item()


def _both(
    teacher: CdpInterest, student: CdpInterest, inputs: InterestInput
) -> tuple[Tensor, Tensor]:
    """z* of the teacher and of the student, which share z_0 and the condition; [B, D] each."""
    with torch.no_grad():
        pooled = teacher.pooling(inputs)
        condition = None if teacher.condition is None else teacher.condition(inputs).condition
        key = teacher.noise_key(inputs)
        wanted = teacher.denoised(pooled, condition, key)
    return wanted, student.denoised(pooled, condition, key)


def training_inputs(experiment: Experiment, config: DistillConfig) -> Iterator[InterestInput]:
    """What the interest module sees of the batches to train on."""
    batches = experiment.data.train
    found = _inputs(experiment, batches, batches.positions(0, config.max_steps))
    return (inputs for inputs, _ in found)


def _inputs(
    experiment: Experiment, batches: TrainBatches | EvaluationBatches, items: list[int]
) -> Iterator[tuple[InterestInput, Tensor]]:
    """What the interest module sees of each batch, and the weights of its impressions, [B]."""
    ranking = experiment.model
    device = experiment.device
    for batch in experiment.loader.load(batches, items):
        placed = batch.to(device)
        with torch.no_grad():
            embeddings = ranking.sparse_arch(placed.sparse, placed.sequence)
            inputs = ranking.ranking_arch.sets[0].interest_input(embeddings, placed)
        yield inputs, placed.weights


def cdp_interest(experiment: Experiment) -> CdpInterest:
    """The module of a CDP model of one set."""
    interest = experiment.model.ranking_arch.sets[0].interest
    assert isinstance(interest, CdpInterest)
    return interest


def _average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    if world_size() == 1:
        return
    for parameter in parameters:
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size()
