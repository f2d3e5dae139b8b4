"""The sharded tables of a plan, without the rest of the model, timed piece by piece."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.optimizers import apply_sparse_optimizer, sparse_optimizers
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.sharders import sharders
from cdp_torchrec.distributed.plans.tables import EmbeddingTable
from cdp_torchrec.distributed.unpooled import look_up_one_by_one
from cdp_torchrec.timer import Timer, synchronize

Piece = Literal["input", "lookup", "output", "gradient", "update"]
PIECES: tuple[Piece, ...] = ("input", "lookup", "output", "gradient", "update")
"""What a step does with a table, in this order: ids travel to the ranks that hold its rows
(input), rows are read and pooled (lookup), embeddings travel back (output), their gradients travel
to the holders (gradient), who update the rows (update). The planner estimates these five. As it
does, the all-reduce and the optimizer of a data-parallel table count as its gradient."""
COMMUNICATION: tuple[Piece, ...] = ("input", "output", "gradient")


@dataclass(frozen=True)
class TableBytes:
    """Memory of tables on one rank."""

    weights: int
    optimizer: int
    """State of the sparse optimizer."""
    gradients: int
    """Dense gradients, of tables whose optimizer is not fused into the backward pass."""


class ShardedTables:
    """Some tables of a plan on all ranks, with their optimizer."""

    def __init__(
        self,
        tables: Sequence[EmbeddingTable],
        shardings: Mapping[str, ParameterSharding],
        *,
        problem: PlanProblem,
        device: torch.device,
    ) -> None:
        """Allocate the shards; collective.

        Args:
            tables: one, or all of a plan.
            shardings: by table name.
            problem: of the plan; decides on the precision of the communication and the optimizer.
            device: where this rank computes.
        """
        collections = nn.ModuleDict()
        module_plans: dict[str, EmbeddingModuleShardingPlan] = {}
        self._keys: list[list[str]] = []
        for kind, pooled in (("pooled", True), ("unpooled", False)):
            some = [table for table in tables if table.is_pooled == pooled]
            if not some:
                continue
            collections[kind] = _collection(some)
            self._keys.append([key for table in some for key in table.features])
            module_plans[kind] = EmbeddingModuleShardingPlan(
                {table.name: shardings[table.name] for table in some}
            )
        optimizer = problem.optimizer
        assert isinstance(optimizer, SparseOptimizerConfig), (
            "what is measured is a training of ours"
        )
        apply_sparse_optimizer(collections, optimizer, device)
        model = DistributedModelParallel(
            collections,
            device=device,
            plan=ShardingPlan(dict(module_plans)),
            sharders=sharders(problem.sharding),
            init_data_parallel=False,
        )
        look_up_one_by_one(model, device)
        # The two kinds differ in their types, not in their use.
        self._collections: list[Any] = [
            module
            for module in model.modules()
            if isinstance(module, ShardedEmbeddingBagCollection | ShardedEmbeddingCollection)
        ]
        self._model = model
        self._optimizers = sparse_optimizers(model, optimizer)
        self._device = device
        self._replicas = [p for c in self._collections for p in _take_out_of_ddp(c._lookups)]

    def step(self, ids: KeyedJaggedTensor) -> dict[Piece, float]:
        """Milliseconds of each piece of one step on this rank; collective.

        Ranks wait for each other before they communicate, so that no rank's time contains another
        one's lookup.

        Args:
            ids: of all keys of the tables, and possibly more.
        """
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        inputs = [_select(ids, keys) for keys in self._keys]
        contexts = [collection.create_context() for collection in self._collections]
        times: dict[Piece, float] = {}
        # From the moment when all ranks are ready, until this one has done its part.
        timed = Timer(ready=self._ready, finish=self._finish).measure

        held, times["input"] = timed(
            lambda: [
                c.input_dist(context, features).wait().wait()
                for c, context, features in zip(self._collections, contexts, inputs, strict=True)
            ]
        )
        embeddings, times["lookup"] = timed(
            lambda: [
                c.compute(context, features)
                for c, context, features in zip(self._collections, contexts, held, strict=True)
            ]
        )
        # Cut here, the gradient's way back and the update of the rows are two backward passes.
        leaves = [[e.detach().requires_grad_() for e in some] for some in embeddings]
        outputs, times["output"] = timed(
            lambda: [
                value
                for c, context, some in zip(self._collections, contexts, leaves, strict=True)
                for value in _values(c.output_dist(context, some).wait())
            ]
        )
        gradients = [torch.ones_like(output) for output in outputs]
        _, times["gradient"] = timed(lambda: torch.autograd.backward(outputs, gradients))
        cut = [(e, leaf.grad) for e, leaf in zip(_flat(embeddings), _flat(leaves), strict=True)]
        cut = [(e, grad) for e, grad in cut if e.requires_grad and grad is not None]
        _, times["update"] = timed(
            lambda: torch.autograd.backward([e for e, _ in cut], [grad for _, grad in cut])
        )
        _, averaging = timed(self._average)
        times["gradient"] += averaging
        _, stepping = timed(self._update)
        times["gradient" if self._replicas else "update"] += stepping
        return times

    def memory(self) -> TableBytes:
        """Memory of this rank's shards, after a step."""
        state = [
            value
            for optimizer in self._optimizers
            for values in optimizer.state.values()
            for value in values.values()
        ]
        parameters = [
            p for c in self._collections for lookup in c._lookups for p in lookup.parameters()
        ]
        return TableBytes(
            weights=_bytes(self._model.state_dict().values()),
            optimizer=_bytes(state),
            gradients=_bytes(p.grad for p in parameters if p.grad is not None),
        )

    def _average(self) -> None:
        for replica in self._replicas:
            assert replica.grad is not None
            dist.all_reduce(replica.grad)
            replica.grad /= dist.get_world_size()

    def _update(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()

    def _ready(self) -> None:
        dist.barrier()
        self._finish()

    def _finish(self) -> None:
        synchronize(self._device)


def _collection(tables: Sequence[EmbeddingTable]) -> nn.Module:
    meta = torch.device("meta")
    configs = [
        {
            "name": table.name,
            "num_embeddings": table.num_embeddings,
            "embedding_dim": table.embedding_dim,
            "feature_names": list(table.features),
        }
        for table in tables
    ]
    if tables[0].is_pooled:
        return EmbeddingBagCollection([EmbeddingBagConfig(**c) for c in configs], device=meta)
    return EmbeddingCollection([EmbeddingConfig(**c) for c in configs], device=meta)


def _select(ids: KeyedJaggedTensor, keys: Sequence[str]) -> KeyedJaggedTensor:
    places = ids.keys()
    return ids.permute([places.index(key) for key in keys])


def _take_out_of_ddp(lookups: list[nn.Module]) -> list[nn.Parameter]:
    """Parameters of the replicas, whose gradients the benchmark averages and times itself."""
    replicas = []
    for place, lookup in enumerate(lookups):
        if isinstance(lookup, DistributedDataParallel):
            lookups[place] = lookup.module
            replicas += list(lookup.module.parameters())
    return replicas


def _values(output: KeyedTensor | Mapping[str, JaggedTensor]) -> list[Tensor]:
    if isinstance(output, KeyedTensor):
        return [output.values()]
    return [jagged.values() for jagged in output.values()]


def _flat(nested: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [tensor for some in nested for tensor in some]


def _bytes(tensors: Iterable[Tensor | ShardedTensor]) -> int:
    """Of the local parts."""
    total = 0
    for tensor in tensors:
        local = (
            [shard.tensor for shard in tensor.local_shards()]
            if isinstance(tensor, ShardedTensor)
            else [tensor]
        )
        total += sum(part.numel() * part.element_size() for part in local)
    return total
