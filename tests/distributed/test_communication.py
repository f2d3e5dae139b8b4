"""Quantized communication and prefetching: what travels, what is refused, what plans expect."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast, get_args

import pytest
import torch
import torch.distributed as dist
from fbgemm_gpu.quantize_comm import QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner.types import Shard, ShardingOption, Storage
from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist
from torchrec.distributed.types import CommOp
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.communication import (
    GRADIENT_SCALE,
    ScaledCodec,
    communication_codecs,
)
from cdp_torchrec.distributed.config import SparseOptimizerConfig
from cdp_torchrec.distributed.optimizers import apply_sparse_optimizer
from cdp_torchrec.distributed.parallelize import initialize_table
from cdp_torchrec.distributed.pipeline import train_pipeline
from cdp_torchrec.distributed.plans.config import (
    CommunicationConfig,
    KernelName,
    Precision,
    ShardingConfig,
    TableShardingConfig,
    TypeName,
)
from cdp_torchrec.distributed.plans.search import choose_plan, search_plan
from cdp_torchrec.distributed.plans.sharders import sharders
from cdp_torchrec.distributed.unpooled import look_up_one_by_one
from tests.distributed.plans.problems import on_nodes_of, problem
from tests.distributed.spawn import run_ranks

CPU = torch.device("cpu")
ADAM = SparseOptimizerConfig(kind="adam")
POOLED: tuple[TypeName, ...] = (
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
)
SEQUENCES: tuple[TypeName, ...] = ("table_wise", "row_wise", "column_wise")
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DIGITS = {"fp32": 24, "fp16": 11, "bf16": 8}
ROWS = 50
EXCHANGES = (
    "all_to_all_single",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "all_gather",
    "all_gather_into_tensor",
)


class Lookup(nn.Module):
    """Two tables, pooled or not."""

    def __init__(self, *, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        meta, names = torch.device("meta"), ("a", "b")
        size: dict[str, Any] = {"embedding_dim": 8, "num_embeddings": ROWS}
        self.tables: nn.Module
        if pooled:
            bags = [EmbeddingBagConfig(name=f"t_{n}", feature_names=[n], **size) for n in names]
            self.tables = EmbeddingBagCollection(device=meta, tables=bags)
        else:
            single = [EmbeddingConfig(name=f"t_{n}", feature_names=[n], **size) for n in names]
            self.tables = EmbeddingCollection(device=meta, tables=single)

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        found = self.tables(ids)
        return torch.cat([found[n] if self.pooled else found[n].values() for n in ("a", "b")])


@contextmanager
def watched_exchanges() -> Iterator[set[torch.dtype]]:
    """Floating-point types that collectives of embeddings send meanwhile."""
    sent: set[torch.dtype] = set()
    originals = {name: getattr(dist, name) for name in EXCHANGES}

    def watching(original: Any) -> Any:
        def watch(*args: Any, **kwargs: Any) -> Any:
            given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
            sent.update(tensor.dtype for tensor in given if tensor.is_floating_point())
            return original(*args, **kwargs)

        return watch

    for name, original in originals.items():
        setattr(dist, name, watching(original))
    try:
        yield sent
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def sharded(
    config: ShardingConfig, *, pooled: bool, optimizer: SparseOptimizerConfig = ADAM
) -> DistributedModelParallel:
    """A model on these CPU ranks, whose plan knows nothing of prefetching."""
    world_size = dist.get_world_size()
    model = Lookup(pooled=pooled)
    apply_sparse_optimizer(model, optimizer, CPU)
    posed = problem(model, world_size=world_size, optimizer=optimizer)
    without = config.model_copy(update={"prefetch": False})
    plan = choose_plan(replace(on_nodes_of(posed, world_size), sharding=without))
    whole = DistributedModelParallel(model, device=CPU, plan=plan, sharders=sharders(config))
    look_up_one_by_one(whole, CPU)
    for name, table in whole.state_dict().items():
        initialize_table(name, table, std=0.1, seed=0)
    return whole


Exchanged = tuple[set[torch.dtype], set[torch.dtype], Tensor, Tensor]


def exchange(strategy: TypeName, precision: Precision, *, pooled: bool) -> Exchanged:
    """Types sent forward and backward, the embeddings, and the tables' gradient on this rank."""
    communication = CommunicationConfig(forward=precision, backward=precision)
    config = ShardingConfig(strategy=strategy, small_table_rows=0, communication=communication)
    model = sharded(config, pooled=pooled)
    generator = torch.Generator().manual_seed(dist.get_rank())
    values = torch.randint(0, ROWS, (16,), generator=generator)
    ids = KeyedJaggedTensor(["a", "b"], values, lengths=torch.full((8,), 2))
    with watched_exchanges() as forward:
        embeddings = model(ids)
    with watched_exchanges() as backward:
        (1e-7 * embeddings.square().sum()).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return forward, backward, embeddings.detach(), torch.cat([torch.zeros(0), *gradients])


CASES = [("pooled", s) for s in POOLED] + [("sequences", s) for s in SEQUENCES]


def on_two_ranks() -> dict[tuple[str, TypeName, Precision], Exchanged]:
    return {
        (kind, strategy, precision): exchange(strategy, precision, pooled=kind == "pooled")
        for kind, strategy in CASES
        for precision in PRECISIONS
    }


@pytest.fixture(scope="module")
def exchanged() -> dict[tuple[str, TypeName, Precision], Exchanged]:
    return run_ranks(2, on_two_ranks)[0]


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_exchange_has_the_precision_of_the_config(
    exchanged: dict[Any, Exchanged], case: tuple[str, TypeName], precision: Precision
) -> None:
    forward, backward, embeddings, gradient = exchanged[(*case, precision)]
    assert forward == backward == {DTYPES[precision]}
    _, _, exact, exact_gradient = exchanged[(*case, "fp32")]
    rounding = 2.0 ** -DIGITS[precision]
    # Two ids of two ranks: at most two roundings of parts and one of their sum.
    torch.testing.assert_close(embeddings, exact, rtol=0, atol=3 * rounding * 0.5)
    torch.testing.assert_close(gradient, exact_gradient, rtol=0, atol=1e-7 * 8 * rounding)
    if precision != "fp32":
        assert not torch.equal(embeddings, exact)
        assert not torch.equal(gradient, exact_gradient)


def test_fp16_gradients_survive_where_fp16_alone_and_fbgemms_scale_lose_them() -> None:
    gradient = torch.tensor([3e-9, -2e-8, 1e-6, 5e-4, -1.0])
    ours = ScaledCodec(SparseType.FP16)
    torch.testing.assert_close(ours.decode(ours.encode(gradient)), gradient, rtol=2e-3, atol=0)
    for scale in (None, GRADIENT_SCALE):
        fbgemms = QuantizedCommCodec(SparseType.FP16, loss_scale=scale)
        assert fbgemms.decode(fbgemms.encode(gradient))[0] == 0


def test_all_collectives_of_embeddings_have_a_codec_and_fp32_needs_none() -> None:
    assert communication_codecs(CommunicationConfig()) is None
    codecs = communication_codecs(CommunicationConfig(backward="bf16"))
    assert codecs is not None
    assert set(codecs) == {operation.name for operation in CommOp}
    for codec in codecs.values():
        assert codec.forward.quantized_dtype == torch.float32
        assert codec.backward.quantized_dtype == torch.bfloat16


def option(config: ShardingConfig, *, hardware: str = "h100") -> ShardingOption:
    """What the planner expects of one table of 10 million rows on 8 ranks."""
    model = nn.Module()
    table = EmbeddingBagConfig(
        name="t_item", embedding_dim=64, num_embeddings=10_000_000, feature_names=["item"]
    )
    model.tables = EmbeddingBagCollection(device=torch.device("meta"), tables=[table])
    posed = replace(
        problem(model, world_size=8, hardware=hardware),
        sharding=config,
        batch_size=4096,
        pooling_factors={"item": 20.0},
    )
    apply_sparse_optimizer(model, ADAM, torch.device(posed.device))
    (only,) = search_plan(posed).options
    return only


@pytest.mark.parametrize("strategy", ["table_wise", "row_wise", "column_wise", "table_row_wise"])
def test_the_planner_expects_half_the_communication_time_of_half_the_bytes(
    strategy: TypeName,
) -> None:
    def perf(precision: Precision) -> tuple[float, float]:
        communication = CommunicationConfig(forward=precision)
        # The improved search may cut columns narrower for one precision than for the other.
        config = ShardingConfig(strategy=strategy, communication=communication, search="torchrec")
        perf = option(config).shards[0].perf
        assert perf is not None
        return perf.fwd_comms, perf.bwd_comms

    forward, backward = perf("fp32")
    assert perf("bf16") == perf("fp16")
    assert perf("fp16") == (pytest.approx(forward / 2), pytest.approx(backward))


def row_wise(kernel: KernelName, load_factor: float | None = None, **kwargs: Any) -> ShardingConfig:
    item = TableShardingConfig(
        types=("row_wise",), kernels=(kernel,), cache_load_factor=load_factor
    )
    return ShardingConfig(tables={"item": item}, **kwargs)


def first_shard(config: ShardingConfig) -> tuple[Shard, Storage]:
    shard = option(config).shards[0]
    assert shard.storage is not None
    return shard, shard.storage


def test_a_cache_takes_its_share_of_gpu_memory_and_prefetching_hides_its_misses() -> None:
    gpu, on_gpu = first_shard(row_wise("fused"))
    cached, in_cache = first_shard(row_wise("fused_uvm_caching", 0.1))
    ahead, fetched = first_shard(row_wise("fused_uvm_caching", 0.1, prefetch=True))
    rows = 10_000_000 // 8 * 64 * 4 * 3  # weights and two moments
    assert on_gpu.hbm > rows
    assert 0.1 * rows < in_cache.hbm < 0.2 * rows
    assert in_cache.ddr == rows
    # The ids of one more batch, and what finding them in the cache takes.
    assert in_cache.hbm < fetched.hbm < in_cache.hbm + 10 * 4096 * 20 * 8
    assert gpu.perf is not None
    assert cached.perf is not None
    assert ahead.perf is not None
    assert cached.perf.fwd_compute > 10 * gpu.perf.fwd_compute
    assert ahead.perf.fwd_compute == gpu.perf.fwd_compute


def test_prefetching_without_a_gpu_or_a_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sharding\.prefetch = true: fills caches on GPUs"):
        option(ShardingConfig(strategy="row_wise", prefetch=True), hardware="cpu")
    with pytest.raises(ConfigError, match=r"no table has a cache.*are fused; .*fused_uvm_caching"):
        option(row_wise("fused", prefetch=True))


class Stream:
    """Remembers what it waits for."""

    def __init__(self) -> None:
        self.waited_for: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited_for.append(other)


def prefetching_again() -> dict[str, bool]:
    """What a second pipeline finds after a first one, in lookups that are to prefetch."""
    config = ShardingConfig(strategy="row_wise", small_table_rows=0, prefetch=True)
    model = sharded(config, pooled=True, optimizer=SparseOptimizerConfig(kind="rowwise_adagrad"))
    tables: Any = model.module.tables
    lookups = [kernel for lookup in tables._lookups for kernel in lookup.modules()]
    kernels = [k for k in lookups if isinstance(k, SplitTableBatchedEmbeddingBagsCodegen)]
    for kernel in kernels:
        kernel.prefetch_stream = cast(torch.cuda.Stream, Stream())
        kernel.register_buffer("lxu_cache_locking_counter", torch.ones(2, 32, dtype=torch.int32))
    pipeline: Any = train_pipeline(model, model.fused_optimizer, CPU, prefetch=True)
    receiving, prefetching = Stream(), Stream()
    pipeline._data_dist_stream, pipeline._prefetch_stream = receiving, prefetching
    pipeline.start_sparse_data_dist(None, pipeline._context)
    locks = [kernel.get_buffer("lxu_cache_locking_counter") for kernel in kernels]
    return {
        "there are lookups": len(kernels) > 0,
        "TorchRec's pipeline": isinstance(pipeline, PrefetchTrainPipelineSparseDist),
        "lookups expect it": all(kernel.prefetch_pipeline for kernel in kernels),
        "former stream forgotten": all(kernel.prefetch_stream is None for kernel in kernels),
        "rows unlocked": not any(lock.any() for lock in locks),
        "ids wait for the prefetch": receiving.waited_for == [prefetching],
    }


@pytest.mark.slow
@pytest.mark.distributed
def test_every_stretch_of_prefetching_starts_clean_and_fenced() -> None:
    (found,) = run_ranks(1, prefetching_again)
    assert all(found.values()), found


def test_the_fence_stands_where_torchrec_starts_to_receive_ids() -> None:
    source = inspect.getsource(PrefetchTrainPipelineSparseDist)
    places = [source.count(f"self.{name}sparse_data_dist(") for name in ("start_", "_start_")]
    assert places in ([2, 0], [0, 3])  # first batches, and every step; now, and in TorchRec 1.6
    assert "wait_stream(self._prefetch_stream)" not in source  # then TorchRec has its own fence
