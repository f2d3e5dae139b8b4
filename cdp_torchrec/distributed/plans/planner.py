"""TorchRec's planner for our models: what can be sharded, how, and in a reproducible order."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embedding import ManagedCollisionEmbeddingCollectionSharder
from torchrec.distributed.mc_embeddingbag import ManagedCollisionEmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.constants import DEFAULT_PERF_ESTIMATOR
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.estimator import EmbeddingPerfEstimatorFactory
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, ShardingOption
from torchrec.distributed.types import ModuleSharder, PipelineType, ShardingPlan, ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.mc_embedding_modules import BaseManagedCollisionEmbeddingCollection

from cdp_torchrec.distributed.communication import communication_codecs
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.plans.quick_search import (
    EstimatorOfDistinctShards,
    QuickOption,
    QuickPartitioner,
)
from cdp_torchrec.model.sparse_arch import is_table

_PLAIN = ShardingConfig()

_FLOAT_BYTES = 4
_DENSE_COPIES = 5
"""Of each dense parameter: itself, gradient, two moments of Adam, and a bucket of DDP."""
_RESERVED = 0.15
"""Share of a GPU's memory kept for activations, workspace and fragmentation."""
_MARK = "_optimizer_classes"
"""Where apply_optimizer_in_backward leaves the optimizer of a table."""


class AllTypesSharder(EmbeddingBagCollectionSharder):
    """The stock sharder without its filter that hides row-wise types on CPU, where they work."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """All sharding types."""
        return [sharding_type.value for sharding_type in ShardingType]


def sharders(config: ShardingConfig = _PLAIN) -> list[ModuleSharder[nn.Module]]:
    """What shards the collections of a model, and what the planner reads its estimates from.

    Args:
        config: precision of the communication, and whether caches are filled ahead.
    """
    codecs = communication_codecs(config.communication)
    # For all tables: TorchRec logs an error for each one without it, though only caches use it.
    fused_params = {"prefetch_pipeline": True} if config.prefetch else None
    bags = AllTypesSharder(fused_params, qcomm_codecs_registry=codecs)
    single = EmbeddingCollectionSharder(fused_params, qcomm_codecs_registry=codecs)
    every = (
        bags,
        single,
        ManagedCollisionEmbeddingBagCollectionSharder(bags),
        ManagedCollisionEmbeddingCollectionSharder(single),
    )
    return [cast(ModuleSharder[nn.Module], sharder) for sharder in every]


@dataclass(frozen=True)
class EmbeddingTable:
    """A table of a model, as plans see it."""

    name: str
    module: str
    """Path of its collection in the model."""
    num_embeddings: int
    embedding_dim: int
    features: tuple[str, ...]
    """Keys that are looked up in it."""
    is_pooled: bool
    """In an EmbeddingBagCollection, instead of the collection that sequences read."""
    buckets: int | None = None
    """Parts of its map from ids to rows, with managed collision."""

    @property
    def entity(self) -> str:
        """Name of its id space in the dataset."""
        return self.name.removeprefix("t_")


def find_tables(model: nn.Module) -> list[EmbeddingTable]:
    """All tables of a model, by name."""
    found = []
    buckets: dict[str, int] = {}
    inner: dict[nn.Module, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, BaseManagedCollisionEmbeddingCollection):
            # Plans name the module that maps the ids, not the tables inside it.
            inner[module._embedding_module] = path
            buckets |= module._managed_collision_collection.table_to_number_buckets()
        if isinstance(module, EmbeddingBagCollection):
            configs = module.embedding_bag_configs()
        elif isinstance(module, EmbeddingCollection):
            configs = module.embedding_configs()
        else:
            continue
        found += [
            EmbeddingTable(
                name=config.name,
                module=inner.get(module, path),
                num_embeddings=config.num_embeddings,
                embedding_dim=config.embedding_dim,
                features=tuple(config.feature_names),
                is_pooled=isinstance(module, EmbeddingBagCollection),
                buckets=buckets.get(config.name),
            )
            for config in configs
        ]
    return sorted(found, key=lambda table: table.name)


@contextmanager
def optimizer_state_sized(model: nn.Module) -> Iterator[None]:
    """Let the planner count the state of Adam where it is not fused into the backward pass.

    The planner looks for the optimizer class on the table, where only fused ones leave it.
    """
    exposed = [
        parameter
        for name, parameter in model.named_parameters()
        if is_table(name) and not hasattr(parameter, _MARK)
    ]
    for parameter in exposed:
        setattr(parameter, _MARK, [torch.optim.Adam])
    yield
    for parameter in exposed:
        delattr(parameter, _MARK)


class ReproducibleEnumerator(EmbeddingEnumerator):
    """Enumerates the options of a table in the same order in every process, and quickly.

    The stock one goes through sets of strings, whose order differs from process to process, and
    with it the plan among equally good ones.
    """

    def populate_estimates(self, sharding_options: list[ShardingOption]) -> None:
        """Time and memory of all options."""
        for option in sharding_options:
            option.__class__ = QuickOption
        for estimator in self._estimators:
            EstimatorOfDistinctShards(estimator).estimate(sharding_options, self._sharder_data_map)

    def _filter_sharding_types(
        self, name: str, allowed_sharding_types: list[str], sharder_key: str = ""
    ) -> list[str]:
        return sorted(super()._filter_sharding_types(name, allowed_sharding_types, sharder_key))

    def _filter_compute_kernels(
        self, name: str, allowed_compute_kernels: list[str], sharding_type: str
    ) -> list[str]:
        return sorted(super()._filter_compute_kernels(name, allowed_compute_kernels, sharding_type))


class QuietPlanner(EmbeddingShardingPlanner):
    """Does not warn, in the root logger, that data-parallel tables have no shards."""

    def plan(self, module: nn.Module, sharders: list[ModuleSharder[nn.Module]]) -> ShardingPlan:
        """The plan of a model."""
        root = logging.getLogger()
        root.addFilter(_is_no_missing_spec)
        try:
            return super().plan(module, sharders)
        finally:
            root.removeFilter(_is_no_missing_spec)


def _is_no_missing_spec(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Sharding spec not found for ")


def make_planner(
    model: nn.Module,
    constraints: Mapping[str, ParameterConstraints],
    *,
    topology: Topology,
    batch_size: int,
    search_seconds: int,
    prefetch: bool = False,
) -> EmbeddingShardingPlanner:
    """TorchRec's planner with our order of enumeration and reservation of memory.

    Args:
        model: the model, for the memory of its dense part.
        constraints: by table.
        topology: the cluster.
        batch_size: impressions per rank.
        search_seconds: time that the search may take.
        prefetch: count the memory that filling caches ahead takes.
    """
    by_name = dict(constraints)
    pipeline = PipelineType.TRAIN_PREFETCH_SPARSE_DIST if prefetch else PipelineType.NONE
    dense = sum(p.numel() for name, p in model.named_parameters() if not is_table(name))
    with warnings.catch_warnings():
        # It advises to give the size of the dense part, which we do.
        warnings.filterwarnings("ignore", message="HeuristicalStorageReservation is known")
        reservation = HeuristicalStorageReservation(
            percentage=_RESERVED, dense_tensor_estimate=dense * _FLOAT_BYTES * _DENSE_COPIES
        )
    return QuietPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=ReproducibleEnumerator(
            topology=topology,
            batch_size=batch_size,
            constraints=by_name,
            estimator=[
                EmbeddingPerfEstimatorFactory.create(
                    DEFAULT_PERF_ESTIMATOR, topology=topology, constraints=by_name
                ),
                EmbeddingStorageEstimator(
                    topology=topology,
                    constraints=by_name,
                    pipeline_type=pipeline,
                    run_embedding_at_peak_memory=True,  # NONE counts outputs, the other one so
                ),
            ],
        ),
        storage_reservation=reservation,
        constraints=by_name,
        partitioner=QuickPartitioner(),
        timeout_seconds=search_seconds,
        debug=False,
    )
