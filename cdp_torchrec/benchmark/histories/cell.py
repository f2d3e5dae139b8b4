"""What an interest module costs as histories grow: time and memory of one batch.

Only the module is timed, on one CPU thread: its inputs (embeddings, index of the sequences) are
there, and gradients reach the embeddings. So `pooled` and the modules built on it, whose histories
are pooled by the lookup, cost the same for every length.
"""

# B impressions, R requests, L behaviours, D embedding dim, K recency segments

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cdp_torchrec.benchmark.histories.config import HistoryBenchmarkConfig
from cdp_torchrec.benchmark.histories.isolated import peak_memory_mib, reset_peak_memory
from cdp_torchrec.data.history_lookup import HistoryLookup
from cdp_torchrec.data.sequence_index import SequenceColumns, index_sequences
from cdp_torchrec.interest import (
    BehaviourSequence,
    GatedPool,
    InterestConfig,
    InterestDims,
    InterestInput,
    InterestModule,
    PooledConfig,
    build_interest,
)

_CAPS = ("max_length", "recent_length")
"""Fields of interest modules that cap the length of the history they read."""
_NUM_ITEMS = 100_000
_NUM_CATEGORIES = 100
_LONGEST_AGE_S = 1e7
_EMBEDDING_STD = 0.05
_POOLED_REPEATS = 5
_WARM_UP_LENGTH = 8


@dataclass(frozen=True)
class Cell:
    """One row at one history length."""

    row: str
    length: int
    config: InterestConfig
    """Reads the whole length."""
    pooled: PooledConfig
    """What it is compared with."""
    settings: HistoryBenchmarkConfig


@dataclass(frozen=True)
class Cost:
    """What a batch costs a module; medians over the rounds."""

    train_ms: float
    """CPU time of forward and backward, with gradients of parameters and embeddings."""
    score_ms: float
    """CPU time of forward in evaluation."""
    train_ratio: float
    """To `pooled` in the same round."""
    score_ratio: float
    """To `pooled` in the same round."""
    train_mib: float
    """Peak of the process's memory above what it held with the inputs."""
    score_mib: float
    """As train_mib, in evaluation."""
    num_rounds: int


def cap(config: InterestConfig) -> int | None:
    """How many of the most recent behaviours a module reads at most; None: all."""
    return next((getattr(config, name) for name in _CAPS if getattr(config, name, None)), None)


def uncapped(config: InterestConfig, length: int) -> InterestConfig:
    """The same module reading `length` behaviours, if it caps them."""
    caps = {name: length for name in _CAPS if getattr(config, name, None)}
    return config.model_copy(update=caps)


def measure(cell: Cell) -> Cost:
    """Cost of a cell; in a process of its own, or earlier peaks of memory hide this one."""
    started = time.monotonic()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pooled = _Contestant(cell.pooled, cell.length, cell.settings)
    # Libraries that are loaded on first use are no cost of a batch.
    warm_up = uncapped(cell.config, _WARM_UP_LENGTH)
    for contestant in (pooled, _Contestant(warm_up, _WARM_UP_LENGTH, cell.settings)):
        contestant.score()
        contestant.train()
    row = _Contestant(cell.config, cell.length, cell.settings)
    score_mib, train_mib = _peak_mib(row.score, row.train)
    rounds: list[Mapping[str, float]] = []
    for _ in range(cell.settings.max_rounds):
        # Alternating, so that a slow moment of the machine hits both alike.
        rounds.append(
            {
                "pooled_score": statistics.median(
                    _ms(pooled.score) for _ in range(_POOLED_REPEATS)
                ),
                "score": _ms(row.score),
                "pooled_train": statistics.median(
                    _ms(pooled.train) for _ in range(_POOLED_REPEATS)
                ),
                "train": _ms(row.train),
            }
        )
        if time.monotonic() - started > cell.settings.time_limit_s / 2:
            break
    return Cost(
        train_ms=statistics.median(r["train"] for r in rounds),
        score_ms=statistics.median(r["score"] for r in rounds),
        train_ratio=statistics.median(r["train"] / r["pooled_train"] for r in rounds),
        score_ratio=statistics.median(r["score"] / r["pooled_score"] for r in rounds),
        train_mib=train_mib,
        score_mib=score_mib,
        num_rounds=len(rounds),
    )


class _Contestant:
    """A module with a batch of inputs."""

    def __init__(
        self, config: InterestConfig, length: int, settings: HistoryBenchmarkConfig
    ) -> None:
        dim = settings.embedding_dim
        dims = InterestDims(
            user=dim,
            query=dim,
            item=dim,
            item_attributes=2 * dim,
            context=2 * dim,
            scene=dim,
            category=dim,
            action=dim,
        )
        self.module: InterestModule = build_interest(config, dims)
        self.inputs = make_inputs(config.history, dims, length, settings)
        self.leaves = [*self.module.parameters(), *_embeddings(self.inputs)]

    def train(self) -> None:
        """Forward, and backward from a scalar that every output has a part in."""
        self.module.train()
        output = self.module(self.inputs)
        total = output.interest.mean()
        for name, values in {**output.losses, **output.click_logits}.items():
            total = total + self.module.loss_weights[name] * values.mean()
        torch.autograd.grad(total, self.leaves, allow_unused=True)

    @torch.no_grad()
    def score(self) -> None:
        """Forward."""
        self.module.eval()
        self.module(self.inputs)


def make_inputs(
    lookup: HistoryLookup, dims: InterestDims, length: int, settings: HistoryBenchmarkConfig
) -> InterestInput:
    """Random inputs in the forms that a module reads.

    The candidates of a request are of one category, to which its whole history belongs: the gated
    history is as long as the other.

    Args:
        lookup: the forms.
        dims: widths.
        length: of the longest history; the others have half of it or more.
        settings: sizes.
    """
    batch_size, num_requests = settings.batch_size, min(settings.num_requests, settings.batch_size)
    generator = np.random.default_rng(0)
    request = np.arange(batch_size) * num_requests // batch_size
    lengths = generator.integers(-(-length // 2), length, num_requests, endpoint=True)
    lengths[0] = length
    category = generator.integers(1, _NUM_CATEGORIES, num_requests, endpoint=True)

    def sequence(longest: int) -> BehaviourSequence:
        kept = np.minimum(lengths, longest)
        count = int(kept.sum())
        columns = SequenceColumns(
            item_id=generator.integers(1, _NUM_ITEMS, count, endpoint=True),
            category_id=np.repeat(category, kept),
            age_s=generator.uniform(1, _LONGEST_AGE_S, count),
            lengths=kept,
            sequence=request,
        )
        return BehaviourSequence(
            item=_embedding(count, dims.item),
            category=_embedding(count, dims.category),
            action=_embedding(count, dims.action),
            index=index_sequences(columns, batch_size=batch_size),
        )

    pool = None
    if lookup.num_pool_segments:
        sums = _embedding(batch_size, lookup.num_pool_segments, dims.item)
        pool = GatedPool(sums=sums, lengths=torch.ones(sums.shape[:2]))
    return InterestInput(
        user=_embedding(batch_size, dims.user),
        query=_embedding(batch_size, dims.query),
        item=_embedding(batch_size, dims.item),
        item_attributes=_embedding(batch_size, dims.item_attributes),
        context=_embedding(batch_size, dims.context),
        scene=_embedding(batch_size, dims.scene),
        key=torch.from_numpy(generator.integers(2**62, size=batch_size)),
        item_id=torch.from_numpy(generator.integers(1, _NUM_ITEMS, batch_size, endpoint=True)),
        category_id=torch.from_numpy(category[request]),
        pool=pool,
        gated=sequence(length) if lookup.gated else None,
        recent=sequence(lookup.recent_length or length) if lookup.recent else None,
    )


def _embedding(*shape: int) -> Tensor:
    return nn.init.normal_(torch.empty(shape), std=_EMBEDDING_STD).requires_grad_()


def _embeddings(inputs: InterestInput) -> list[Tensor]:
    roles = ["user", "query", "item", "item_attributes", "context", "scene"]
    found = [getattr(inputs, role) for role in roles]
    if inputs.pool is not None:
        found.append(inputs.pool.sums)
    for sequence in (inputs.gated, inputs.recent):
        if sequence is not None:
            found += [sequence.item, sequence.category, sequence.action]
    return found


def _peak_mib(*steps: Callable[[], None]) -> list[float]:
    """Peak memory of each step above what the process held before all of them."""
    before = reset_peak_memory()
    peaks = []
    for step in steps:
        reset_peak_memory()
        step()
        peaks.append(peak_memory_mib() - before)
    return peaks


def _ms(step: Callable[[], None]) -> float:
    """CPU time, which other work on the machine disturbs less than the time on the wall."""
    started = time.process_time()
    step()
    return 1e3 * (time.process_time() - started)
