"""Small problems that need no data and no ranks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.plans.hardware import load_hardware
from cdp_torchrec.distributed.plans.problem import PlanProblem

ADAM = SparseOptimizerConfig(kind="adam")
ADAGRAD = SparseOptimizerConfig(kind="rowwise_adagrad")
POOLED = {"user": 5001, "hour": 3}
"""Rows of tables; one has fewer than ranks."""
SEQUENCE = {"item": 700}


class Tables(nn.Module):
    """Tables of both collections, named after their features."""

    def __init__(
        self,
        pooled: Mapping[str, int] = POOLED,
        sequence: Mapping[str, int] = SEQUENCE,
        *,
        width: int = 16,
    ) -> None:
        super().__init__()
        meta = torch.device("meta")
        bags = [EmbeddingBagConfig(**_table(*table, width)) for table in pooled.items()]
        singles = [EmbeddingConfig(**_table(*table, width)) for table in sequence.items()]
        self.pooled = EmbeddingBagCollection(bags, device=meta)
        self.sequence = EmbeddingCollection(singles, device=meta)


def _table(name: str, num_embeddings: int, width: int) -> dict[str, Any]:
    return {
        "name": f"t_{name}",
        "num_embeddings": num_embeddings,
        "embedding_dim": width,
        "feature_names": [name],
    }


def problem(
    model: nn.Module | None = None,
    *,
    world_size: int = 2,
    hardware: str = "cpu",
    optimizer: SparseOptimizerConfig = ADAM,
    **sharding: Any,
) -> PlanProblem:
    """What a plan of these tables is for; no table counts as small unless asked for."""
    return PlanProblem(
        model=Tables() if model is None else model,
        sharding=ShardingConfig.model_validate({"small_table_rows": 0, **sharding}),
        optimizer=optimizer,
        hardware=load_hardware(hardware),
        world_size=world_size,
        batch_size=32,
        pooling_factors={},
    )


def on_nodes_of(problem: PlanProblem, ranks_per_node: int) -> PlanProblem:
    """The same ranks on nodes of another size."""
    hardware = problem.hardware.model_copy(update={"ranks_per_node": ranks_per_node})
    return replace(problem, hardware=hardware)


def with_replicas(problem: PlanProblem) -> PlanProblem:
    """The same on twice as many ranks, half of which hold a second copy of the tables."""
    return replace(problem, num_replicas=2)
