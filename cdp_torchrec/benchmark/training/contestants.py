"""What trains in the benchmark: the sharded model as train.py runs it, and a plain twin of it."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdp_torchrec.benchmark.training.sparse_adam import SparseAdam
from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.batch import Batch
from cdp_torchrec.distributed.parallelize import initialize_table
from cdp_torchrec.distributed.pipeline import train_pipeline
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.experiment import Experiment
from cdp_torchrec.model.embedding_sets import build_ranking_arch
from cdp_torchrec.model.sparse_arch import table_name
from cdp_torchrec.model.train_task import TrainLoss, TrainOutput
from cdp_torchrec.progress import progress


@dataclass(frozen=True)
class Contestant:
    """Something that trains on the same batches in memory again and again."""

    name: str
    step: Callable[[], TrainOutput]
    """Train on the next batch; collective."""


def sharded_contestant(name: str, experiment: Experiment, *, num_batches: int) -> Contestant:
    """The pipelined training of train.py, at the learning rates of its first step.

    Args:
        name: its name.
        experiment: model, optimizers and batches.
        num_batches: batches in memory.
    """
    parallelized = experiment.parallelized
    parallelized.model.train()
    pipeline = train_pipeline(
        parallelized.model,
        parallelized.optimizer,
        experiment.device,
        prefetch=parallelized.prefetch,
    )
    parallelized.optimizer.set_learning_rates(0)
    source = _batches(experiment, num_batches)
    log_every = experiment.config.trainer.log_every_steps
    steps = itertools.count(1)

    def step() -> TrainOutput:
        parallelized.task.monitor(next(steps) % log_every == 0)
        return pipeline.progress(source)

    return Contestant(name, step)


def plain_contestant(name: str, experiment: Experiment, *, num_batches: int) -> Contestant:
    """The same model on one rank with plain nn.EmbeddingBag tables and PyTorch's own optimizers.

    It begins with the weights that its sharded twin began with. With the sparse optimizer `adam` it
    takes the same steps; PyTorch has no row-wise Adagrad, so in its place stands Adagrad.

    Args:
        name: its name.
        experiment: the sharded twin, which has not trained yet.
        num_batches: batches in memory.

    Raises:
        ConfigError: the model looks up single behaviours, or maps ids by managed collision.
    """
    config, layout = experiment.config, experiment.data.layout
    if layout.sequence_features or any(t.managed_collision for t in layout.tables.values()):
        raise ConfigError(
            f"benchmark.plain = true: plain tables only sum bags of ids, and '{name}' looks up "
            "single behaviours or manages collisions; set benchmark.plain=false, or begin "
            "benchmark.rows with a row like 'pooled'"
        )
    dim, std = config.model.embedding_dim, config.model.embedding_init_std
    tables = nn.ModuleDict()
    for entity, table in layout.tables.items():
        bags = nn.EmbeddingBag(table.num_embeddings, dim, mode="sum", sparse=True)
        name_of_weight = f"{table_name(entity)}.weight"
        initialize_table(name_of_weight, bags.weight.data, std=std, seed=config.seed)
        tables[entity] = bags
    dense = build_ranking_arch(layout, config.model)
    dense.load_state_dict(experiment.model.ranking_arch.state_dict())
    for module in (tables, dense):
        module.to(experiment.device).train()
    loss = TrainLoss(dense.sets[0].interest.loss_weights)
    max_norm = config.optimizer.dense.max_gradient_norm
    optimizers = _plain_optimizers(experiment, tables, dense)
    source = _batches(experiment, num_batches)

    def step() -> TrainOutput:
        batch = next(source)
        for optimizer in optimizers:
            optimizer.zero_grad()
        embeddings: dict[str, Tensor] = {}
        for feature in layout.features:
            jagged = batch.sparse[feature.key]
            embeddings[feature.key] = tables[feature.table](jagged.values(), jagged.offsets()[:-1])
        total, output = loss(dense(embeddings, batch), batch.labels, batch.weights)
        total.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(dense.parameters(), max_norm)
        for optimizer in optimizers:
            optimizer.step()
        return output

    return Contestant(name, step)


def _plain_optimizers(
    experiment: Experiment, tables: nn.Module, dense: nn.Module
) -> list[torch.optim.Optimizer]:
    sparse, other = experiment.config.optimizer.sparse, experiment.config.optimizer.dense
    rates = experiment.parallelized.optimizer.set_learning_rates(0)
    parameters = list(tables.parameters())
    return [
        SparseAdam(parameters, lr=rates["sparse"], betas=sparse.betas, eps=sparse.eps)
        if sparse.kind == "adam"
        else torch.optim.Adagrad(parameters, lr=rates["sparse"], eps=sparse.eps),
        torch.optim.AdamW(
            dense.parameters(),
            lr=rates["dense"],
            betas=other.betas,
            eps=other.eps,
            weight_decay=other.weight_decay,
            fused=True,
        ),
    ]


def _batches(experiment: Experiment, num_batches: int) -> Iterator[Batch]:
    """The first training batches of this rank, without end."""
    batches = experiment.data.train
    positions = progress(
        batches.positions(0, num_batches), "read", unit="batches", active=is_rank_zero()
    )
    return itertools.cycle([batches[position].to(experiment.device) for position in positions])
