"""Every table gets the sparse optimizer, with the mathematics of its reference."""

import inspect
import math
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from cdp_torchrec.distributed.config import (
    DenseOptimizerConfig,
    OptimizerConfig,
    RanksConfig,
    ScheduleConfig,
    SparseOptimizerConfig,
)
from cdp_torchrec.distributed.fused_adamw import FusedAdamW
from cdp_torchrec.distributed.optimizers import ScheduledOptimizer, apply_sparse_optimizer
from cdp_torchrec.distributed.parallelize import initialize_table
from cdp_torchrec.distributed.plans.config import TypeName
from cdp_torchrec.distributed.plans.search import choose_plan
from cdp_torchrec.distributed.plans.sharders import sharders
from tests.distributed.plans.problems import problem
from tests.distributed.spawn import run_ranks
from tests.runs import DEVICES, one_rank_on

CPU = torch.device("cpu")
ROWS = {"small": 7, "a": 40, "b": 53}
STEPS = 6
EPS = 1e-6
CASES: list[tuple[str, TypeName]] = [
    ("adam", "table_wise"),
    ("adam", "row_wise"),
    ("adam", "data_parallel"),
    ("rowwise_adagrad", "table_wise"),
    ("rowwise_adagrad", "row_wise"),
    ("rowwise_adagrad", "data_parallel"),
]


class Linear(nn.Module):
    """Two lookups per table and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_bag_collection = EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(
                    name=f"t_{name}", embedding_dim=4, num_embeddings=rows, feature_names=[name]
                )
                for name, rows in ROWS.items()
            ],
        )
        self.linear = nn.Linear(4 * len(ROWS), 1)

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        pooled = self.embedding_bag_collection(ids)
        return self.linear(torch.cat([pooled[name] for name in ROWS], dim=1)).squeeze(1)


def batch(step: int, size: int) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = {n: torch.randint(0, rows, (size, 2), generator=generator) for n, rows in ROWS.items()}
    return ids, torch.randn(size, generator=generator)


def jagged(ids: dict[str, Tensor]) -> KeyedJaggedTensor:
    values = torch.cat([i.reshape(-1) for i in ids.values()])
    lengths = torch.full((len(ids) * len(ids["a"]),), 2)
    return KeyedJaggedTensor(list(ids), values, lengths=lengths)


def config_of(kind: str) -> OptimizerConfig:
    return OptimizerConfig(
        sparse=SparseOptimizerConfig.model_validate({"kind": kind, "lr": 0.05, "eps": EPS}),
        dense=DenseOptimizerConfig(lr=0.01),
    )


def sharded_tables(
    kind: str, strategy: TypeName, device: torch.device = CPU, *, steps: int = STEPS
) -> dict[str, Tensor]:
    """Tables after some steps, each rank with its share of every batch; gathered."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(0)
    model, config = Linear(), config_of(kind)
    apply_sparse_optimizer(model.embedding_bag_collection, config.sparse, device)
    plan = choose_plan(
        problem(
            model,
            world_size=world_size,
            hardware="cpu" if device == CPU else "h100",
            optimizer=config.sparse,
            strategy=strategy,
            small_table_rows=10,
        )
    )
    sharded = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders())
    for name, table in sharded.state_dict().items():
        if ".embedding_bags." in name:
            initialize_table(name, table, std=0.1, seed=0)
    optimizer = ScheduledOptimizer(sharded, config, max_steps=steps)
    for step in range(steps):
        optimizer.set_learning_rates(step)
        ids, target = batch(step, 8)
        own = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
        optimizer.zero_grad()
        output = sharded(jagged({name: i[own] for name, i in ids.items()}).to(device))
        (output - target[own].to(device)).square().mean().backward()
        optimizer.step()
    return {name: gather(table) for name, table in sharded.state_dict().items()}


def clipped_gradient_norm() -> float:
    """Norm of the dense gradients that the optimizer used, clipped to 0.001."""
    device = torch.device("cpu")
    model = Linear()
    settings = OptimizerConfig(dense=DenseOptimizerConfig(lr=0.01, max_gradient_norm=1e-3))
    plan = choose_plan(problem(model, optimizer=settings.sparse, small_table_rows=2000))
    sharded = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders())
    optimizer = ScheduledOptimizer(sharded, settings, max_steps=1)
    ids, target = batch(0, 8)
    (sharded(jagged(ids)) - target).square().sum().backward()
    optimizer.step()
    gradients = [p.grad for n, p in sharded.named_parameters() if "linear" in n]
    return torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt().item()


def gather(table: Tensor | ShardedTensor) -> Tensor:
    if not isinstance(table, ShardedTensor):
        return table.detach().cpu().clone()
    [device] = {shard.tensor.device for shard in table.local_shards()} or {CPU}
    whole = torch.zeros(table.size(), device=device) if torch.distributed.get_rank() == 0 else None
    table.gather(dst=0, out=whole)
    return torch.zeros(0) if whole is None else whole.cpu()


def reference_tables(kind: str, *, steps: int = STEPS) -> dict[str, Tensor]:
    """The same training with nn.EmbeddingBag, by the formulas.

    Adam: arXiv 1412.6980, algorithm 1, over the rows that were looked up.
    """
    torch.manual_seed(0)
    linear = Linear().linear
    bags = {n: nn.EmbeddingBag(rows, 4, mode="sum") for n, rows in ROWS.items()}
    for name, bag in bags.items():
        initialize_table(f"x.t_{name}.weight", bag.weight.data, std=0.1, seed=0)
    tables = [bag.weight for bag in bags.values()]
    accumulators = [torch.zeros(len(table)) for table in tables]
    moments = [(torch.zeros_like(t.data), torch.zeros_like(t.data)) for t in tables]
    dense = torch.optim.Adam(linear.parameters(), lr=0.01)
    for step in range(steps):
        ids, target = batch(step, 8)
        for parameter in [*tables, *linear.parameters()]:
            parameter.grad = None
        output = linear(torch.cat([bags[n](i) for n, i in ids.items()], dim=1)).squeeze(1)
        (output - target).square().mean().backward()
        dense.step()
        for name, table, accumulator, (m, v) in zip(
            bags, tables, accumulators, moments, strict=True
        ):
            assert table.grad is not None
            if kind == "adam":
                rows = ids[name].unique()
                m[rows] = 0.9 * m[rows] + 0.1 * table.grad[rows]
                v[rows] = 0.999 * v[rows] + 0.001 * table.grad[rows].square()
                mean, root = m / (1 - 0.9 ** (step + 1)), (v / (1 - 0.999 ** (step + 1))).sqrt()
                table.data[rows] -= 0.05 * (mean / (root + EPS))[rows]
                continue
            accumulator += table.grad.square().mean(dim=1)
            table.data -= 0.05 * table.grad / (accumulator.sqrt() + EPS).unsqueeze(1)
    prefix = "embedding_bag_collection.embedding_bags"
    return {f"{prefix}.t_{name}.weight": bag.weight for name, bag in bags.items()}


Tables = dict[tuple[str, TypeName], dict[str, Tensor]]


def on_two_ranks() -> tuple[Tables, float]:
    tables: Tables = {(kind, plan): sharded_tables(kind, plan) for kind, plan in CASES}
    return tables, clipped_gradient_norm()


@pytest.fixture(scope="module")
def two_ranks() -> tuple[Tables, float]:
    return run_ranks(2, on_two_ranks)[0]


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_sparse_optimizer_equals_its_reference_under_every_plan(
    two_ranks: tuple[Tables, float], case: tuple[str, TypeName]
) -> None:
    trained, _ = two_ranks
    for name, expected in reference_tables(case[0]).items():
        torch.testing.assert_close(trained[case][name], expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["adam", "rowwise_adagrad"])
def test_twenty_steps_of_one_rank_equal_the_reference_within_1e_5(kind: str, device: str) -> None:
    """On a GPU the optimizer is fused into FBGEMM's backward pass."""
    with one_rank_on(device) as here:
        trained = sharded_tables(kind, "row_wise", here, steps=20)
    for name, expected in reference_tables(kind, steps=20).items():
        torch.testing.assert_close(trained[name], expected.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["adam", "rowwise_adagrad"])
def test_what_a_gpu_fuses_into_the_backward_pass_has_fbgemms_names(kind: str) -> None:
    model = Linear()
    apply_sparse_optimizer(
        model.embedding_bag_collection, config_of(kind).sparse, torch.device("cuda")
    )
    known = inspect.signature(SplitTableBatchedEmbeddingBagsCodegen).parameters
    for parameter in model.embedding_bag_collection.parameters():
        [arguments] = parameter._optimizer_kwargs  # pyrefly: ignore[missing-attribute]
        assert set(arguments) - {"lr"} <= set(known)  # TorchRec calls lr FBGEMM's learning_rate
        assert arguments["lr"] == 0.05 and arguments["eps"] == EPS


@pytest.mark.distributed
def test_dense_gradients_are_clipped_together(two_ranks: tuple[Tables, float]) -> None:
    assert two_ranks[1] == pytest.approx(1e-3, rel=1e-3)


def test_the_dense_optimizer_is_adamw_bit_for_bit_also_where_a_gradient_is_missing() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 9), (33,), (5,)]
    ours, theirs = (
        {f"p{i}": nn.Parameter(torch.ones(shape)) for i, shape in enumerate(shapes)}
        for _ in range(2)
    )
    betas, eps, weight_decay = (0.8, 0.95), 1e-6, 0.1
    dense = FusedAdamW(ours, betas=betas, eps=eps, weight_decay=weight_decay)
    reference = torch.optim.AdamW(
        theirs.values(), betas=betas, eps=eps, weight_decay=weight_decay, fused=True
    )
    for step, missing in enumerate(["p1", None, "p2", None]):
        for optimizer in (dense, reference):
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (step + 1)  # pyrefly: ignore[unsupported-operation]
        for name, parameter in ours.items():
            if name != missing:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                theirs[name].grad = parameter.grad.clone()
        dense.step()
        reference.step()
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name])
        state = reference.state[theirs[name]]
        assert dense.state[parameter].keys() == state.keys()
        assert all(torch.equal(dense.state[parameter][key], state[key]) for key in state)
    assert [float(dense.state[parameter]["step"]) for parameter in ours.values()] == [4, 3, 3]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ScheduleConfig(), [1, 1, 1]),
        (ScheduleConfig(kind="linear"), [1, 0.5, 0]),
        (ScheduleConfig(kind="cosine", final_factor=0.2), [1, 0.6, 0.2]),
        (ScheduleConfig(kind="linear", decay_steps=50), [1, 0, 0]),
    ],
)
def test_schedule_factors_have_their_closed_form(
    config: ScheduleConfig, expected: list[float]
) -> None:
    assert [config.factor(step, 100) for step in (0, 50, 100)] == pytest.approx(expected)


def test_warm_up_rises_linearly_then_hands_over() -> None:
    config = ScheduleConfig(kind="cosine", warmup_steps=4)
    assert [config.factor(s, 104) for s in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert config.factor(54, 104) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "linear", "final_factor": 1.5},
        {"kind": "cosine", "warmup_steps": 50, "decay_steps": 50},
    ],
    ids=["a decay that rises", "a decay that ends before it begins"],
)
def test_a_schedule_that_is_no_decay_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"final_factor|decay_steps"):
        ScheduleConfig(**settings)


@pytest.mark.parametrize("name", ["collective_timeout_s", "silence_limit_s"])
def test_ranks_have_a_second_to_answer_at_least(name: str) -> None:
    assert getattr(RanksConfig(**{name: 1}), name) == 1
    with pytest.raises(ValueError, match=name):
        RanksConfig(**{name: 1e-7})
