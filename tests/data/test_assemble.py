"""A batch holds what the dataset says, whatever its size, padding or neighbours."""

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.assemble import BatchAssembler, no_impressions
from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.config import DataConfig, VocabularyConfig
from cdp_torchrec.data.dataset import open_dataset
from cdp_torchrec.data.history.lookup import HistoryCounts, HistoryLookup
from cdp_torchrec.data.history.store import HistoryStore
from cdp_torchrec.data.layout import WHOLE_KEY, build_layout
from cdp_torchrec.data.loader import EvaluationBatches, Share, TrainBatches
from cdp_torchrec.data.model_inputs import InputAssembler
from cdp_torchrec.data.request_files import RequestFiles
from cdp_torchrec.data.requests import ImpressionOrder
from cdp_torchrec.data.schema import DatasetError, load_schema
from cdp_torchrec.data.tables.embedding_table import Table

SEGMENTS = (1, 3)
MAX_LENGTH = 6


def make_inputs(
    dataset: Path,
    *,
    batch_size: int,
    vocabulary: dict[str, VocabularyConfig] | None = None,
    history: HistoryLookup | None = None,
    dayparts: int = 1,
) -> InputAssembler:
    schema = load_schema(dataset)
    return InputAssembler(
        build_layout(
            dataset,
            schema,
            vocabulary=vocabulary or {},
            history=history or HistoryLookup(pool_segments=SEGMENTS),
            counts=HistoryCounts(SEGMENTS),
            dayparts=dayparts,
        ),
        HistoryStore(
            dataset / "history",
            schema.history,
            num_categories=schema.entities["category"].num_ids,
        ),
        batch_size=batch_size,
        max_history_length=MAX_LENGTH,
        seed=0,
    )


def make_assembler(
    dataset: Path,
    *,
    batch_size: int,
    vocabulary: dict[str, VocabularyConfig] | None = None,
    history: HistoryLookup | None = None,
    dayparts: int = 1,
) -> BatchAssembler:
    return BatchAssembler(
        make_inputs(
            dataset,
            batch_size=batch_size,
            vocabulary=vocabulary,
            history=history,
            dayparts=dayparts,
        )
    )


def make_order(dataset: Path, seed: int | None = None) -> ImpressionOrder:
    return ImpressionOrder(RequestFiles(dataset, load_schema(dataset), "train"), seed=seed)


def bags_of(batch: Batch, key: str) -> list[list[int]]:
    jagged = batch.sparse[key]
    return [row.tolist() for row in torch.split(jagged.values(), jagged.lengths().tolist())]


def raw_history(dataset: Path) -> dict[int, list[tuple[int, ...]]]:
    """By user: (timestamp, category, item) of all behaviours in order of time."""
    folder = dataset / "history" / "by_time"
    columns = [np.load(folder / f"{n}.npy") for n in ("timestamp", "category", "item")]
    offsets = np.load(dataset / "history" / "user_offsets.npy")
    return {
        user: [
            tuple(int(c[row]) for c in columns) for row in range(offsets[user], offsets[user + 1])
        ]
        for user in range(len(offsets) - 1)
    }


def test_sums_and_counts_are_of_the_whole_gated_history(tiny_dataset: Path) -> None:
    """As a scan of the log finds it, also beyond what a sequence keeps."""
    order, history = make_order(tiny_dataset, seed=2), raw_history(tiny_dataset)
    impressions = order.take(0, 300, 364)
    batch = make_assembler(tiny_dataset, batch_size=64).assemble(impressions, epoch=0)
    segments = [bags_of(batch, f"history_item_id_{k}") for k in range(3)]
    longest, old_matches = 0, 0
    for place, request in enumerate(impressions.request_index):
        user = int(impressions.request["user_id"][request])
        before = int(impressions.request["timestamp"][request])
        category = int(impressions.candidate["category_id"][place])
        item = int(impressions.candidate["item_id"][place])
        gated = [i for t, c, i in history[user] if t < before and c == category]
        expected = [gated[-1:], gated[-4:-1], gated[:-4]]
        group = int(batch.pool_index[place])
        # One out-of-vocabulary row, and every id kept: row = code + 1.
        assert [[row - 1 for row in s[group]] for s in segments] == expected
        counts = [len(part) for part in expected] + [part.count(item) for part in expected]
        assert batch.history_counts[place].tolist() == counts
        assert int(batch.history_length[place]) == sum(t < before for t, _, _ in history[user])
        last = [i for t, _, i in history[user] if t < before][::-1]
        assert int(batch.history_rank[place]) == (last.index(item) if item in last else -1)
        longest = max(longest, len(gated))
        old_matches += gated[:-MAX_LENGTH].count(item)
    assert longest > 2 * MAX_LENGTH and old_matches > 0


def test_a_sum_over_the_whole_history_is_of_all_behaviours_before_the_request(
    tiny_dataset: Path,
) -> None:
    order, history = make_order(tiny_dataset, seed=2), raw_history(tiny_dataset)
    impressions = order.take(0, 300, 364)
    assembler = make_assembler(tiny_dataset, batch_size=64, history=HistoryLookup(whole=True))
    batch = assembler.assemble(impressions, epoch=None)
    found = bags_of(batch, WHOLE_KEY)
    for number, user in enumerate(impressions.request["user_id"].tolist()):
        before = int(impressions.request["timestamp"][number])
        # One out-of-vocabulary row, and every id kept: row = code + 1.
        assert [row - 1 for row in found[number]] == [i for t, _, i in history[user] if t < before]
    assert max(map(len, found)) > 2 * MAX_LENGTH
    assert not any(found[len(impressions.request["user_id"]) :])


def test_sequences_equal_a_scan_of_the_log(tiny_dataset: Path) -> None:
    """Items, categories and ages of the gated and of the recent behaviours, oldest first."""
    order, history = make_order(tiny_dataset, seed=2), raw_history(tiny_dataset)
    impressions = order.take(0, 300, 364)
    lookup = HistoryLookup(gated=True, recent=True, recent_length=5)
    assembler = make_assembler(tiny_dataset, batch_size=64, history=lookup)
    batch = assembler.assemble(impressions, epoch=0)
    assert batch.sequence is not None and batch.gated is not None and batch.recent is not None
    rows = {
        key: torch.split(batch.sequence[key].values(), batch.sequence[key].lengths().tolist())
        for key in ("gated_item", "gated_category", "recent_item", "recent_category")
    }
    some = 0
    for place, request in enumerate(impressions.request_index):
        user = int(impressions.request["user_id"][request])
        before = int(impressions.request["timestamp"][request])
        category = int(impressions.candidate["category_id"][place])
        past = [row for row in history[user] if row[0] < before]
        gated = [row for row in past if row[1] == category][-MAX_LENGTH:]
        for name, expected in (("gated", gated), ("recent", past[-5:])):
            index = getattr(batch, name)
            number = int(index.sequence[place])
            # One out-of-vocabulary row, and every id kept: row = code + 1.
            assert (rows[f"{name}_item"][number] - 1).tolist() == [row[2] for row in expected]
            assert (rows[f"{name}_category"][number] - 1).tolist() == [row[1] for row in expected]
            own = index.owner == number
            assert index.item_id[own].tolist() == [row[2] for row in expected]
            age = [(before - row[0]) / 1000 for row in expected]
            assert index.age[own].tolist() == pytest.approx(age)
            some += len(expected)
    assert some > 200


def test_history_never_reaches_the_request_or_later(tiny_dataset: Path) -> None:
    """Behaviours at and after the request change nothing (the request's own click among them)."""
    order = make_order(tiny_dataset)
    impressions = order.take(0, 0, 64)
    inputs = make_inputs(tiny_dataset, batch_size=64)
    assembler = BatchAssembler(inputs)
    batch = assembler.assemble(impressions, epoch=None)
    moments = impressions.request["timestamp"][impressions.request_index]
    store = inputs._histories._store
    assert isinstance(store, HistoryStore)
    behaviours = store.by_category
    late = behaviours.timestamp >= moments.max()
    assert late.any()
    object.__setattr__(behaviours, "item", np.where(late, 1, behaviours.item[:]))
    again = assembler.assemble(impressions, epoch=None)
    assert torch.equal(batch.sparse.values(), again.sparse.values())


def test_padding_changes_no_impression(tiny_dataset: Path) -> None:
    impressions = make_order(tiny_dataset).take(0, 0, 40)
    exact = make_assembler(tiny_dataset, batch_size=40).assemble(impressions, epoch=None)
    padded = make_assembler(tiny_dataset, batch_size=64).assemble(impressions, epoch=None)
    assert padded.weights.tolist() == [1.0] * 40 + [0.0] * 24
    assert padded.sparse.stride() == 64
    for feature in load_schema(tiny_dataset).features:
        key = feature.name
        if feature.entity is None:
            continue
        assert bags_of(padded, key) == bags_of(exact, key) + [[]] * 24
    for name in ("labels", "key", "numbers", "request_index", "pool_index", "history_counts"):
        assert torch.equal(getattr(padded, name)[:40], getattr(exact, name)), name


def test_a_batch_holds_the_domain_of_each_request_where_it_is_asked_for(tiny_dataset: Path) -> None:
    impressions = make_order(tiny_dataset).take(0, 0, 40)
    lookup = HistoryLookup(recent=True, domain=True)
    batch = make_assembler(tiny_dataset, batch_size=64, history=lookup).assemble(
        impressions, epoch=None
    )
    expected = impressions.request["client"][impressions.request_index].tolist()
    assert batch.domain_id is not None
    assert batch.domain_id.tolist() == expected + [0] * 24
    assert len(set(expected)) > 1
    silent = make_assembler(tiny_dataset, batch_size=64).assemble(impressions, epoch=None)
    assert silent.domain_id is None


def test_a_rank_without_impressions_gets_a_batch_of_padding(tiny_dataset: Path) -> None:
    nothing = no_impressions(make_order(tiny_dataset).take(0, 0, 1))
    batch = make_assembler(tiny_dataset, batch_size=16).assemble(nothing, epoch=None)
    assert batch.weights.sum() == 0
    assert batch.sparse.values().numel() == 0


def test_keys_name_impressions_and_differ_by_epoch(tiny_dataset: Path) -> None:
    order, assembler = make_order(tiny_dataset), make_assembler(tiny_dataset, batch_size=64)
    whole = assembler.assemble(order.take(0, 0, 64), epoch=None).key
    part = assembler.assemble(order.take(0, 32, 64), epoch=None).key
    assert torch.equal(whole[32:], part[:32])
    assert len(set(whole.tolist())) == 64
    epochs = [assembler.assemble(order.take(0, 0, 64), epoch=e).key.tolist() for e in (0, 1)]
    assert not set(epochs[0]) & set(epochs[1])
    assert not set(epochs[0]) & set(whole.tolist())


def test_rare_ids_share_rows_and_frequent_ids_have_their_own(tiny_dataset: Path) -> None:
    schema = load_schema(tiny_dataset)
    counts = pq.read_table(tiny_dataset / "vocabulary" / "item.parquet")["count"].to_numpy()
    rule = {"item": VocabularyConfig(min_count=int(np.median(counts)) + 1, num_oov_rows=3)}
    layout = build_layout(
        tiny_dataset, schema, vocabulary=rule, history=HistoryLookup(), counts=None
    )
    table = layout.tables["item"]
    codes = np.arange(len(counts) + 1)
    rows = table.rows(codes)
    frequent = np.flatnonzero(counts >= rule["item"].min_count) + 1
    assert rows[0] == 0
    assert len(set(rows[frequent])) == len(frequent)
    assert rows[frequent].min() == 4
    assert set(rows[np.setdiff1d(codes[1:], frequent)]) == {1, 2, 3}
    assert table.num_embeddings == 4 + len(frequent) == rows.max() + 1


def test_an_id_beyond_its_table_is_an_error() -> None:
    table = Table("item", num_oov_rows=1, num_kept=5, num_ids=9)
    for code in (10, -1):
        with pytest.raises(DatasetError, match=f"entity 'item': found id code .*{code}.* 0 to 9"):
            table.rows(np.array([1, code]))


def test_a_vocabulary_rule_for_an_unknown_entity_is_an_error(tiny_dataset: Path) -> None:
    with pytest.raises(DatasetError, match=r"names \['itm'\], but .* has the entities"):
        make_assembler(tiny_dataset, batch_size=8, vocabulary={"itm": VocabularyConfig()})


def test_ranks_share_the_global_batch_of_one(tiny_dataset: Path) -> None:
    order = make_order(tiny_dataset, seed=4)

    def shares(world_size: int, position: int) -> list[list[int]]:
        return [
            TrainBatches(
                order,
                make_assembler(tiny_dataset, batch_size=64 // world_size),
                global_batch_size=64,
                share=Share(rank, world_size),
            )[position].key.tolist()
            for rank in range(world_size)
        ]

    for position in (0, 192, order.num_impressions):
        whole = shares(1, position)[0]
        for world_size in (2, 4):
            assert list(chain(*shares(world_size, position))) == whole


def test_progress_is_the_passes_before_the_step_on_every_rank(tiny_dataset: Path) -> None:
    """A function of the position alone: a resumed training goes on where it was."""
    order = make_order(tiny_dataset, seed=4)
    for world_size in (1, 2):
        for rank in range(world_size):
            batches = TrainBatches(
                order,
                make_assembler(tiny_dataset, batch_size=64 // world_size),
                global_batch_size=64,
                share=Share(rank, world_size),
            )
            for position in (0, 192, order.num_impressions, order.num_impressions + 640):
                progress = batches[position].progress
                assert progress is not None and progress.shape == (64 // world_size,)
                expected = position / order.num_impressions
                assert progress.unique().tolist() == pytest.approx([expected], rel=1e-6)
    evaluation = make_assembler(tiny_dataset, batch_size=8).assemble(
        order.take(0, 0, 8), epoch=None
    )
    assert evaluation.progress is None


def test_a_global_batch_never_spans_two_epochs(tiny_dataset: Path) -> None:
    order = make_order(tiny_dataset, seed=4)
    batches = TrainBatches(
        order,
        make_assembler(tiny_dataset, batch_size=64),
        global_batch_size=64,
        share=Share(0, 1),
    )
    per_epoch = order.num_impressions // 64
    positions = batches.positions(0, per_epoch + 2)
    assert positions[per_epoch - 1] == (per_epoch - 1) * 64
    assert positions[per_epoch:] == [order.num_impressions, order.num_impressions + 64]
    assert batches.positions(positions[5], 3) == positions[5:8]


def test_a_global_batch_may_end_with_its_epoch(tiny_dataset: Path) -> None:
    order = make_order(tiny_dataset, seed=4)
    half, rest = divmod(order.num_impressions, 2)
    assert not rest
    assembler = make_assembler(tiny_dataset, batch_size=half)
    batches = TrainBatches(order, assembler, global_batch_size=half, share=Share(0, 1))
    assert batches.positions(0, 4) == [0, half, 2 * half, 3 * half]


def test_evaluation_scores_every_impression_once_on_any_number_of_ranks(tiny_dataset: Path) -> None:
    order = make_order(tiny_dataset)
    seen = {}
    for world_size in (1, 3):
        keys = []
        for rank in range(world_size):
            batches = EvaluationBatches(
                order,
                make_assembler(tiny_dataset, batch_size=300 // world_size),
                global_batch_size=300,
                share=Share(rank, world_size),
            )
            assert len(batches) == -(-order.num_impressions // 300)
            for step in range(len(batches)):
                batch = batches[step]
                keys += batch.key[batch.weights > 0].tolist()
        assert len(keys) == order.num_impressions
        seen[world_size] = sorted(keys)
    assert seen[1] == seen[3]


def test_a_global_batch_larger_than_the_data_is_an_error(tiny_dataset: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.global_batch_size = 1000000: exceeds"):
        open_dataset(
            DataConfig(dir=tiny_dataset),
            history=HistoryLookup(),
            history_counts=False,
            global_batch_size=1_000_000,
            share=Share(0, 1),
            seed=0,
        )
