"""Training a small model under any plan, on any number of ranks."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import collective_utils, comm
from torchrec.distributed.types import EmbeddingModuleShardingPlan

from cdp_torchrec.config import load_config
from cdp_torchrec.experiment import Experiment, build_experiment
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.checkpoint import Checkpointer
from cdp_torchrec.run.monitor import Monitor
from cdp_torchrec.run.records import Progress
from cdp_torchrec.trainer import Trainer
from tests.distributed.plans.smooth import SmoothUnits
from tests.distributed.spawn import run_ranks
from tests.paths import CONFIGS
from tests.whole_matrix import WHOLE_MATRIX

CPU = torch.device("cpu")
LEARNING_RATES = {"adam": 5e-3, "rowwise_adagrad": 5e-2}
SETTINGS = [
    "data.history.max_length=40",
    "model.embedding_dim=16",
    "model.embedding_init_std=0.1",
    "optimizer.dense.lr=1e-3",
    "trainer.global_batch_size=64",
    "trainer.log_every_steps=1",
]
PURE = (
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "data_parallel",
    "grid_shard",
)
"""Plans of one type, named after it."""
PLANS = {name: [f"sharding.strategy={name}", "sharding.small_table_rows=0"] for name in PURE} | {
    # Both collections mix types; a row of t_item lies on one rank as two or four shards.
    "mixed": [
        "sharding.small_table_rows=7",
        'sharding.tables.item={types=["column_wise"],column_width=4}',
        'sharding.tables.category={types=["row_wise"]}',
        'sharding.tables.user={types=["table_row_wise"]}',
        'sharding.tables.query={types=["grid_shard"]}',
        'sharding.tables.token={types=["row_wise"]}',
        'sharding.tables.hour={types=["table_wise"]}',
    ],
    # Two ranks hold one copy of the tables; on four there are two of them.
    "groups_of_two": [
        "sharding.sharding_group_size=2",
        "sharding.small_table_rows=7",
        'sharding.tables.item={types=["column_wise"],column_width=4}',
        'sharding.tables.category={types=["row_wise"]}',
        'sharding.tables.user={types=["row_wise"]}',
        'sharding.tables.query={types=["table_wise"]}',
    ],
    # What row-wise Adagrad has of it.
    "mixed_rows": [
        "sharding.small_table_rows=7",
        'sharding.tables.item={types=["row_wise"]}',
        'sharding.tables.category={types=["table_wise"]}',
        'sharding.tables.user={types=["table_row_wise"]}',
        'sharding.tables.query={types=["data_parallel"]}',
        'sharding.tables.token={types=["row_wise"]}',
        'sharding.tables.hour={types=["table_wise"]}',
    ],
}
GROUPED = ("groups_of_two",)
"""Plans that only so many ranks have."""
PLANS_OF = {
    "adam": [name for name in PLANS if name not in ("mixed_rows", *GROUPED)],
    "rowwise_adagrad": [
        name for name in PLANS if name not in ("column_wise", "grid_shard", "mixed", *GROUPED)
    ],
}
"""By optimizer: row-wise Adagrad is not split by columns."""


@dataclass(frozen=True)
class Layout:
    """Ranks on nodes."""

    world_size: int
    num_nodes: int = 1

    def __str__(self) -> str:
        ranks = self.world_size // self.num_nodes
        return f"{self.num_nodes}x{ranks}" if self.num_nodes > 1 else str(ranks)


LAYOUTS = [Layout(1), Layout(2), Layout(4), Layout(4, num_nodes=2)]
BETWEEN_NODES = ("table_row_wise", "grid_shard", "mixed", "mixed_rows")
"""Plans that two nodes change."""


Phase = tuple[Layout, Callable[..., Any]]


def run_phases(phases: Sequence[Phase], *arguments: Any) -> list[Any]:
    """Results of `function(layout, *arguments)` on rank 0, one phase after the other.

    All in the same processes, because their start takes longer than most of what they do.
    """
    most = max(layout.world_size for layout, _ in phases)
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(most, _run_phases, folder, phases, arguments)[0]


def _run_phases(folder: str, phases: Sequence[Phase], arguments: Any) -> list[Any]:
    rank, all_ranks = dist.get_rank(), Layout(dist.get_world_size())
    dist.barrier()  # a rank that leaves at once would break the others' connecting
    dist.destroy_process_group()
    found = []
    for number, (layout, function) in enumerate(phases):
        if rank < layout.world_size:
            _join(f"{folder}/{number}", layout, rank)
            found.append(function(layout, *arguments))
            dist.barrier()
            dist.destroy_process_group()
    _join(f"{folder}/end", all_ranks, rank)
    return found


def _join(store: str, layout: Layout, rank: int) -> None:
    ranks_per_node = layout.world_size // layout.num_nodes
    os.environ.update(
        WORLD_SIZE=str(layout.world_size),
        LOCAL_WORLD_SIZE=str(ranks_per_node),
        LOCAL_RANK=str(rank % ranks_per_node),
    )
    # TorchRec remembers, as long as the process lives, the groups within and between nodes, and
    # whether all ranks have agreed on how to check collectives.
    comm._INTRA_PG = comm._CROSS_PG = None
    collective_utils._INITIALIZED = False
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, layout.world_size),
        rank=rank,
        world_size=layout.world_size,
        timeout=timedelta(hours=1),  # ranks wait here while a smaller layout runs
    )


@dataclass(frozen=True)
class Case:
    """A plan on some ranks."""

    plan: str
    layout: Layout

    def __str__(self) -> str:
        return f"{self.plan} {self.layout}"


def cases(optimizer: str) -> list[Case]:
    """Every plan that the optimizer has, on every layout that makes a difference to it.

    A third of them without the whole matrix: all plans, each number of ranks, and the mixed plans
    on most of them.
    """
    found = [
        Case(plan, layout)
        for layout in LAYOUTS
        for plan in PLANS_OF[optimizer]
        if layout.num_nodes == 1 or plan in BETWEEN_NODES
    ]
    return found if WHOLE_MATRIX else found[2::3]


def config(
    dataset: Path, interest: str, optimizer: str, plan: str, *overrides: str
) -> ExperimentConfig:
    """A run under a plan."""
    own = [
        f"data.dir={dataset}",
        f"optimizer.sparse.kind={optimizer}",
        f"optimizer.sparse.lr={LEARNING_RATES[optimizer]}",
    ]
    preset = str(CONFIGS / "interest" / f"{interest}.toml")
    return load_config(ExperimentConfig, [preset, *SETTINGS, *own, *PLANS[plan], *overrides])


class _Recorder:
    """A monitor that keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def advance(self) -> None: ...

    def show(self, scalars: Mapping[str, float]) -> None: ...

    def record(self, kind: str, step: int, scalars: Mapping[str, float]) -> None:
        self.losses.append(scalars["loss"])


class _NoCheckpoints(AbstractContextManager[None]):
    has_failed = False

    def __exit__(self, *error: object) -> None: ...

    def best(self) -> None: ...

    def save(self, *state: Any) -> None: ...

    def finish(self) -> None: ...


def train_until(
    experiment: Experiment,
    progress: Progress,
    stop: int,
    checkpointer: Checkpointer | None = None,
) -> tuple[list[float], Progress]:
    """Losses of the trainer's steps up to `stop`, and where they end; saves at the end."""
    recorder = _Recorder()
    trainer = Trainer(
        experiment.config.trainer,
        experiment.parallelized,
        replace(experiment.data, validation=None),
        experiment.loader,
        checkpointer or cast(Checkpointer, _NoCheckpoints()),
        cast(Monitor, recorder),
        total_steps=stop,
        device=CPU,
    )
    progress = trainer.train(progress)
    return recorder.losses, progress


def whole_state(experiment: Experiment) -> dict[str, Tensor]:
    """Model and optimizer state by key, on rank 0, every tensor put together from its shards.

    Fails if an element is missing or if replicas differ; collective.
    """
    model, optimizer = experiment.parallelized.model, experiment.parallelized.optimizer
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    for parameter, values in optimizer.state_dict()["state"].items():
        state |= {f"{parameter}.{name}": value for name, value in values.items()}
    own = [part for name, value in state.items() for part in _parts(name, value)]
    gathered: list[list[_Part]] | None = [] if dist.get_rank() == 0 else None
    if gathered is not None:
        gathered = [[] for _ in range(dist.get_world_size())]
    dist.gather_object(own, gathered)
    whole: dict[str, Tensor] = {}
    for part in [part for parts in gathered or [] for part in parts]:
        target = whole.setdefault(part.name, torch.full(part.size, torch.nan))
        for dimension, (offset, length) in enumerate(
            zip(part.offsets, part.tensor.shape, strict=True)
        ):
            target = target.narrow(dimension, offset, length)
        assert target.isnan().all() or target.equal(part.tensor), f"{part.name}: replicas differ"
        target.copy_(part.tensor)
    for name, tensor in whole.items():
        assert not tensor.isnan().any(), f"{name}: not all shards are there"
    return whole


@dataclass(frozen=True)
class _Part:
    name: str
    size: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: Tensor


def _parts(name: str, value: Tensor | ShardedTensor) -> list[_Part]:
    if not isinstance(value, ShardedTensor):
        return [_Part(name, tuple(value.shape), (0,) * value.ndim, value.detach().clone())]
    return [
        _Part(name, tuple(value.size()), tuple(s.metadata.shard_offsets), s.tensor.detach().clone())
        for s in value.local_shards()
    ]


def tables_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tables by name, from `whole_state`."""
    marks = (".embedding_bags.", ".embeddings.")
    return {
        name.split(".")[-2]: value
        for name, value in state.items()
        if name.startswith("model.") and any(mark in name for mark in marks)
    }


@dataclass(frozen=True)
class Trained:
    """Result of a training."""

    losses: list[float]
    tables: dict[str, Tensor]
    """At the end, by name."""
    types: dict[str, str]
    """Sharding type by table."""


def train_sharded(settings: ExperimentConfig, num_steps: int) -> Trained:
    """Train under the plan of a configuration; tables on rank 0; collective."""
    experiment = build_experiment(settings, CPU)
    with SmoothUnits():
        losses, _ = train_until(experiment, Progress(step=0, position=0), num_steps)
    types = {}
    for plan in experiment.parallelized.plan.plan.values():
        assert isinstance(plan, EmbeddingModuleShardingPlan)
        types |= {name: parameter.sharding_type for name, parameter in plan.items()}
    return Trained(losses, tables_of(whole_state(experiment)), types)
