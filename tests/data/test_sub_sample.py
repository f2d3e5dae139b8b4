"""The random part of a gated history that training offers, and nothing else."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cdp_torchrec.data.assemble import BatchAssembler
from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.history.store import Slices
from cdp_torchrec.data.history.sub_sample import draw_part
from cdp_torchrec.data.layout import DAYPART_KEY, PART_KEY, POOL_KEY
from cdp_torchrec.data.loader import EvaluationBatches, Share, TrainBatches
from tests.data.test_assemble import bags_of, make_assembler, make_order

LOOKUP = HistoryLookup(pool_segments=(), part=True)
WHOLE_KEY = f"{POOL_KEY}_0"


def slices(*lengths: int) -> Slices:
    ends = np.cumsum(lengths)
    return Slices(ends - lengths, ends)


def keys(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64)


def assembler(dataset: Path, batch_size: int) -> BatchAssembler:
    return make_assembler(dataset, batch_size=batch_size, history=LOOKUP)


def parts_of(batch: Batch) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
    """Part and whole of each gated history, by request and category."""
    part, whole = bags_of(batch, f"{PART_KEY}_0"), bags_of(batch, WHOLE_KEY)
    found = {}
    for place in batch.weights.nonzero().flatten().tolist():
        group = int(batch.pool_index[place])
        key = int(batch.request_id[place]), int(batch.category_id[place])
        found[key] = part[group], whole[group]
    return found


def test_a_part_holds_behaviours_of_its_own_history_each_at_most_once() -> None:
    lengths = [0, 1, 2, 50, 0, 7]
    histories = slices(*lengths)
    rows, kept = draw_part(histories, keys(6))
    owner = np.repeat(np.arange(6), kept)
    assert len(np.unique(rows)) == len(rows) == kept.sum()
    assert (rows >= histories.start[owner]).all() and (rows < histories.stop[owner]).all()
    assert kept[[0, 4]].tolist() == [0, 0] and kept[1] == 1
    assert (kept[[2, 3, 5]] >= 1).all() and (kept <= lengths).all()


def test_the_size_of_a_part_is_log_uniform() -> None:
    length, count = 30, 20_000
    _, kept = draw_part(slices(*[length] * count), keys(count))
    sizes = np.arange(1, length + 1)
    expected = count * (np.log(sizes + 1) - np.log(sizes)) / np.log(length + 1)
    found = np.bincount(kept, minlength=length + 1)
    assert found[0] == 0
    assert stats.chisquare(found[1:], expected).pvalue > 1e-4


def test_every_behaviour_is_as_likely_as_every_other() -> None:
    length, count = 12, 20_000
    rows, kept = draw_part(slices(*[length] * count), keys(count))
    found = np.bincount(rows % length, minlength=length)
    expected = np.full(length, kept.sum() / length)
    # Without replacement the counts vary less than those of independent draws.
    assert stats.chisquare(found, expected).statistic < stats.chi2.ppf(0.9999, length - 1)
    pairs = np.zeros((count, length))
    pairs[np.repeat(np.arange(count), kept), rows % length] = 1
    two = pairs[kept == 2]
    together = np.triu(two.T @ two, 1)[np.triu_indices(length, 1)]
    assert stats.chisquare(together).pvalue > 1e-4


def test_a_part_depends_on_its_key_alone() -> None:
    lengths, key = [5, 40, 3, 17], np.array([7, 1, 2, 9], dtype=np.int64)
    histories = slices(*lengths)
    rows, kept = draw_part(histories, key)
    for place in range(4):
        one = slice(place, place + 1)
        alone, size = draw_part(Slices(histories.start[one], histories.stop[one]), key[one])
        assert size.tolist() == kept[one].tolist()
        assert alone.tolist() == np.split(rows, np.cumsum(kept)[:-1])[place].tolist()
    other, _ = draw_part(histories, key + 100)
    assert other.tolist() != rows.tolist()


def test_a_training_batch_offers_a_part_of_each_gated_history(tiny_dataset: Path) -> None:
    batch = assembler(tiny_dataset, 256).assemble(make_order(tiny_dataset).take(0, 0, 256), epoch=0)
    found = parts_of(batch)
    for part, whole in found.values():
        assert bool(part) == bool(whole)
        # Items repeat in a history, so a part may hold one as often as the history does.
        assert all(part.count(item) <= whole.count(item) for item in part)
    assert sum(0 < len(part) < len(whole) for part, whole in found.values()) > 30


def test_a_part_is_the_same_when_it_is_told_apart_by_the_time_of_day(tiny_dataset: Path) -> None:
    impressions = make_order(tiny_dataset).take(0, 0, 256)
    whole = assembler(tiny_dataset, 256).assemble(impressions, epoch=0)
    split = make_assembler(tiny_dataset, batch_size=256, history=LOOKUP, dayparts=4)
    batch = split.assemble(impressions, epoch=0)
    bags = [bags_of(batch, f"{PART_KEY}_{part}") for part in range(4)]
    all_of_day = [bags_of(batch, f"{DAYPART_KEY}_{part}") for part in range(4)]
    assert sum(bool(bag) for part in bags[1:] for bag in part) > 30
    for group, expected in enumerate(bags_of(whole, f"{PART_KEY}_0")):
        assert sorted(row for part in bags for row in part[group]) == sorted(expected)
        for part, of_day in zip(bags, all_of_day, strict=True):
            assert not Counter(part[group]) - Counter(of_day[group])


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_part_is_the_same_for_any_ranks_and_batches(tiny_dataset: Path, world_size: int) -> None:
    order = make_order(tiny_dataset, seed=4)

    def found(size: int, positions: list[int]) -> dict[tuple[int, int], set[tuple[int, ...]]]:
        parts = defaultdict(set)
        for rank in range(world_size if size < 64 else 1):
            share = Share(rank, world_size if size < 64 else 1)
            batches = TrainBatches(
                order,
                assembler(tiny_dataset, size),
                global_batch_size=size * share.world_size,
                share=share,
            )
            for position in positions:
                for key, (part, _) in parts_of(batches[position]).items():
                    parts[key].add(tuple(part))
        return parts

    whole = found(256, [0])
    assert all(len(parts) == 1 for parts in whole.values())
    assert found(32, list(range(0, 256, 32 * world_size))) == whole


def test_every_epoch_and_seed_draws_anew(tiny_dataset: Path) -> None:
    impressions = make_order(tiny_dataset).take(0, 0, 64)
    maker = assembler(tiny_dataset, 64)
    first, again, second = (
        parts_of(maker.assemble(impressions, epoch=epoch)) for epoch in (0, 0, 1)
    )
    assert first == again != second


def test_evaluation_draws_no_part(tiny_dataset: Path) -> None:
    batches = EvaluationBatches(
        make_order(tiny_dataset),
        assembler(tiny_dataset, 64),
        global_batch_size=64,
        share=Share(0, 1),
    )
    found = list(parts_of(batches[0]).values())
    assert any(whole for _, whole in found)
    assert not any(part for part, _ in found)


def test_a_served_model_has_no_lookup_for_it() -> None:
    assert LOOKUP.served == HistoryLookup(pool_segments=())
