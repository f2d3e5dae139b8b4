"""Ids that stand on their shared row at random in training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.data.config import DataConfig, VocabularyConfig
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.tables.embedding_table import Table
from cdp_torchrec.data.tables.id_dropout import with_dropout
from tests.data.test_assemble import bags_of, make_assembler, make_order

OOV = 3
HALF = {"item": VocabularyConfig(num_oov_rows=OOV, dropout=0.5, min_count=2)}
NEVER = {"item": HALF["item"].model_copy(update={"dropout": 0.0})}


def test_an_id_falls_on_the_row_of_rare_ids_as_often_as_asked() -> None:
    table = Table("item", num_oov_rows=4, num_kept=50, num_ids=60, dropout=0.3)
    codes, request = np.tile(np.arange(61), 1000), np.repeat(np.arange(1000), 61)
    rows = with_dropout(table, codes, request, draw=7)
    kept, shared = table.rows(codes), table.shared_rows(codes)
    own = (codes > 0) & (codes <= 50)
    assert (rows[~own] == kept[~own]).all(), "missing and rare ids stay where they are"
    dropped = rows != kept
    assert (rows[dropped] == shared[dropped]).all()
    assert dropped[own].mean() == pytest.approx(0.3, abs=0.01)
    by_code = dropped.reshape(1000, 61).mean(axis=0)
    assert by_code[1:51] == pytest.approx(np.full(50, 0.3), abs=0.07)


def test_draws_differ_by_epoch_seed_and_entity() -> None:
    codes, request = np.full(1000, 5), np.arange(1000)

    def dropped(entity: str, draw: int) -> np.ndarray:
        table = Table(entity, num_oov_rows=1, num_kept=9, num_ids=9, dropout=0.5)
        return with_dropout(table, codes, request, draw=draw) == 1

    first = dropped("item", 1)
    assert (dropped("item", 1) == first).all()
    for other in (dropped("item", 2), dropped("item", 1 + (1 << 20)), dropped("user", 1)):
        assert (other == first).mean() == pytest.approx(0.5, abs=0.06)


def test_one_draw_decides_for_the_candidate_and_the_behaviours_on_it(tiny_dataset: Path) -> None:
    order = make_order(tiny_dataset, seed=2)
    lookup = HistoryLookup(gated=True, recent=True, recent_length=5)
    impressions = order.take(0, 300, 364)
    assembled = {
        name: make_assembler(
            tiny_dataset, batch_size=64, vocabulary=vocabulary, history=lookup
        ).assemble(impressions, epoch=0)
        for name, vocabulary in {"half": HALF, "never": NEVER}.items()
    }
    half, never = assembled["half"], assembled["never"]
    assert half.sequence is not None and never.sequence is not None
    assert half.gated is not None and half.recent is not None
    owners = {
        "item_id": half.request_id,
        "gated_item": half.request_id[half.gated.first_impression][half.gated.owner],
        "recent_item": half.request_id[half.recent.first_impression][half.recent.owner],
    }
    fate: dict[tuple[int, int], set[bool]] = {}
    for key, owner in owners.items():
        was, now = never.sequence[key].values(), half.sequence[key].values()
        for request, row, found in zip(*(x.tolist() for x in (owner, was, now)), strict=True):
            if row > OOV:
                fate.setdefault((request, row), set()).add(found != row)
    assert all(len(fates) == 1 for fates in fate.values())
    assert np.mean([fates.pop() for fates in fate.values()]) == pytest.approx(0.5, abs=0.1)


def test_draws_do_not_depend_on_the_batch_and_evaluation_has_none(tiny_dataset: Path) -> None:
    order = make_order(tiny_dataset, seed=2)

    def items(size: int, epoch: int | None, vocabulary: dict[str, VocabularyConfig]) -> list[int]:
        assembler = make_assembler(tiny_dataset, batch_size=size, vocabulary=vocabulary)
        batches = [
            assembler.assemble(order.take(0, start, start + size), epoch=epoch)
            for start in range(0, 64, size)
        ]
        return [row for batch in batches for bag in bags_of(batch, "item_id") for row in bag]

    whole = items(64, 0, HALF)
    assert items(16, 0, HALF) == whole
    assert items(64, 1, HALF) != whole
    assert items(64, None, HALF) == items(64, None, NEVER) != whole


def test_pooled_histories_are_dropped_with_their_request(tiny_dataset: Path) -> None:
    impressions = make_order(tiny_dataset, seed=2).take(0, 300, 364)
    half, never = (
        make_assembler(tiny_dataset, batch_size=64, vocabulary=v).assemble(impressions, epoch=0)
        for v in (HALF, NEVER)
    )
    key = "history_item_id_2"
    assert torch.equal(half.sparse[key].lengths(), never.sparse[key].lengths())
    was, now = never.sparse[key].values(), half.sparse[key].values()
    assert (now != was)[was > OOV].float().mean() == pytest.approx(0.5, abs=0.1)


def test_managed_collision_leaves_nothing_to_drop() -> None:
    settings = ["dir=x", "vocabulary.item={managed_collision={zch_size=64}, dropout=0.1}"]
    with pytest.raises(ConfigError, match="leaves nothing for min_count, num_oov_rows and dropout"):
        load_config(DataConfig, settings)
