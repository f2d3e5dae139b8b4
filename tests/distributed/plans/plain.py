"""The same training in plain PyTorch: nn.Embedding, SparseAdam, and nothing of TorchRec's."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from cdp_torchrec.benchmark.training.sparse_adam import SparseAdam
from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.loader import Share
from cdp_torchrec.distributed.config import OptimizerConfig
from cdp_torchrec.distributed.parallelize import initialize_table
from cdp_torchrec.experiment import open_data
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.model.ranking_model import RankingModel
from cdp_torchrec.model.train_task import TrainTask
from tests.distributed.plans.smooth import SmoothUnits


class PlainBags(nn.Module):
    """Sums of bags from plain tables."""

    def __init__(self, tables: nn.ModuleDict, configs: list[BaseEmbeddingConfig]) -> None:
        super().__init__()
        self.tables = tables
        self._configs = configs

    def forward(self, ids: KeyedJaggedTensor) -> KeyedTensor:
        sums = {
            key: nn.functional.embedding_bag(
                ids[key].values(),
                cast(Tensor, self.tables[config.name].weight),
                ids[key].offsets()[:-1],
                mode="sum",
                sparse=True,
            )
            for config in self._configs
            for key in config.feature_names
        }
        return KeyedTensor(
            list(sums), [value.shape[1] for value in sums.values()], torch.cat([*sums.values()], 1)
        )


class PlainEmbeddings(PlainBags):
    """Single embeddings from plain tables."""

    def forward(self, ids: KeyedJaggedTensor) -> dict[str, JaggedTensor]:  # pyrefly: ignore
        return {
            key: JaggedTensor(
                self.tables[config.name](ids[key].values()), lengths=ids[key].lengths()
            )
            for config in self._configs
            for key in config.feature_names
        }


@dataclass(frozen=True)
class Plain:
    """Result of a training in plain PyTorch."""

    losses: list[float]
    tables: dict[str, Tensor]
    moved: dict[str, float]
    """By table: how far the element went that moved furthest."""


def train_plain(settings: ExperimentConfig, num_steps: int) -> Plain:
    """The same training on one process: nn.Embedding, SparseAdam, and nothing of TorchRec's."""
    batches = open_data(
        settings, share=Share(0, 1), global_batch_size=settings.trainer.global_batch_size
    )
    torch.manual_seed(settings.seed)
    task = TrainTask(RankingModel(batches.layout, settings.model))
    task.model.ranking_arch.sets[0].over_arch.start_at(batches.schema.splits["train"].click_rate)
    arch = task.model.sparse_arch
    bags, singles = arch.embedding_bag_collection, arch.embedding_collection
    assert bags is not None and singles is not None
    bag_configs, single_configs = bags.embedding_bag_configs(), singles.embedding_configs()
    tables, initial = nn.ModuleDict(), {}
    for table in [*bag_configs, *single_configs]:
        tables[table.name] = nn.Embedding(table.num_embeddings, table.embedding_dim, sparse=True)
        weight = cast(Tensor, tables[table.name].weight)
        std = settings.model.embedding_init_std
        initialize_table(f"x.{table.name}.weight", weight, std=std, seed=settings.seed)
        initial[table.name] = weight.detach().clone()
    arch.embedding_bag_collection = cast(Any, PlainBags(tables, [*bag_configs]))
    arch.embedding_collection = cast(Any, PlainEmbeddings(tables, [*single_configs]))
    weights = {name: cast(nn.Parameter, table.weight) for name, table in tables.items()}
    own = {id(weight) for weight in weights.values()}
    dense = [parameter for parameter in task.parameters() if id(parameter) not in own]
    step = _plain_step(settings.optimizer, [*weights.values()], dense)
    losses = []
    task.train()
    for position in batches.train.positions(0, num_steps):
        batch: Batch = batches.train[position]
        task.zero_grad()
        with SmoothUnits():
            loss, _ = task(batch)
        loss.backward()
        step()
        losses.append(loss.item())
    final = {name: weight.detach() for name, weight in weights.items()}
    moved = {name: (final[name] - initial[name]).abs().max().item() for name in final}
    return Plain(losses, final, moved)


def _plain_step(
    config: OptimizerConfig, tables: list[nn.Parameter], dense: list[nn.Parameter]
) -> Any:
    lr, eps = config.sparse.lr, config.sparse.eps
    rest = torch.optim.AdamW(
        dense, lr=config.dense.lr, eps=config.dense.eps, weight_decay=config.dense.weight_decay
    )
    if config.sparse.kind == "adam":
        adam = SparseAdam(tables, lr=lr, betas=config.sparse.betas, eps=eps)
        return lambda: (adam.step(), rest.step())
    means = [torch.zeros(len(table)) for table in tables]

    def step() -> None:
        for table, mean in zip(tables, means, strict=True):
            assert table.grad is not None
            gradient = table.grad.to_dense()
            mean += gradient.square().mean(dim=1)
            table.data -= lr * gradient / (mean.sqrt() + eps).unsqueeze(1)
        rest.step()

    return step
