"""What ids cost on their way to their tables: all that TorchRec sends is counted."""

from dataclasses import replace

import pytest
import torch
from torchrec.distributed.embedding_sharding import bucketize_kjt_before_all2all
from torchrec.distributed.planner.types import CollectiveType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.distributed.plans.hardware import load_hardware
from cdp_torchrec.distributed.plans.search import choose_plan
from cdp_torchrec.distributed.plans.topology import link_of_collective
from cdp_torchrec.planning.estimator import estimate_plan
from cdp_torchrec.planning.fixed_costs import input_ms
from tests.distributed.plans.problems import ADAGRAD, Tables, problem

BATCH = 32
ROWS = {"a": 1000, "b": 800}
FACTORS = {"a": 3.0, "b": 1.0}


def numbers_sent(num_buckets: int) -> int:
    """Ids and lengths of a batch that goes by rows, as TorchRec packs it."""
    lengths = torch.cat([torch.full((BATCH,), int(factor)) for factor in FACTORS.values()])
    values = torch.zeros(int(lengths.sum()), dtype=torch.int64)
    ids = KeyedJaggedTensor(list(FACTORS), values, lengths=lengths)
    sizes = torch.tensor([-(-rows // num_buckets) for rows in ROWS.values()])
    sent, _ = bucketize_kjt_before_all2all(ids, num_buckets=num_buckets, block_sizes=sizes)
    return sent.lengths().numel() + sent.values().numel()


@pytest.mark.parametrize(
    ("strategy", "ranks", "buckets"), [("table_wise", 4, 1), ("row_wise", 4, 4), ("row_wise", 8, 8)]
)
def test_rows_of_every_rank_get_a_length(strategy: str, ranks: int, buckets: int) -> None:
    given = replace(
        problem(Tables(ROWS, {}), optimizer=ADAGRAD),
        hardware=load_hardware("h100"),
        world_size=ranks,
        batch_size=BATCH,
        pooling_factors=FACTORS,
    )
    given = replace(given, sharding=given.sharding.model_copy(update={"strategy": strategy}))
    tables = estimate_plan(given, choose_plan(given)).tables
    assert {table.sharding_type for table in tables} == {strategy}
    link = link_of_collective(given.hardware, ranks, CollectiveType.ALL_TO_ALL)
    assert input_ms(given, tables) == pytest.approx(8 * numbers_sent(buckets) / link)
