"""What a model reads of a run of impressions: embedding rows, and the tensors of its dense part."""

# B impressions, R <= B requests, G <= B gated histories, K recency segments, M bag features,
# N numbers

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from cdp_torchrec.data.history.reader import HistoryReader
from cdp_torchrec.data.history.sequence_index import (
    SHORTEST_BLOCK,
    Blocks,
    SequenceColumns,
    SequenceIndex,
    index_sequences,
)
from cdp_torchrec.data.history.store import BehaviourSource
from cdp_torchrec.data.jagged_codes import JaggedCodes
from cdp_torchrec.data.layout import FeatureLayout
from cdp_torchrec.data.request_files import Impressions
from cdp_torchrec.data.tables.id_dropout import with_dropout
from cdp_torchrec.data.tables.own_rows import FEW
from cdp_torchrec.keyed_random import epoch_draw, impression_key

_NO_EPOCH = 0


@dataclass
class DenseInputs:
    """What the dense part of a model reads of B impressions beside the embeddings.

    What belongs to a request is stored once per request and addressed by `request_index`; the
    gated history once per (request, category), addressed by `pool_index`.
    """

    bag_lengths: Tensor
    """Float [B, M]: lengths of the bags, to divide the sums by."""
    numbers: Tensor
    """Float [B, N]: standardised numbers of each impression."""
    request_index: Tensor
    """Int64 [B] in [0, R)."""
    pool_index: Tensor
    """Int64 [B] in [0, G): gated history of the impression in the pooled lookup."""
    gated: SequenceIndex | None
    """The gated histories as sequences, if the model reads them."""
    recent: SequenceIndex | None
    """The recent behaviours of each request, if the model reads them."""
    stranger: SequenceIndex | None
    """Recent behaviours of another user for each request, if the model reads them; None outside of
    training."""
    history_counts: Tensor
    """Float [B, HistoryCounts.width]: behaviours in the target's category by recency segment, then
    those on the target item itself, and the same by age; [B, 0] if the tower does not see them."""
    key: Tensor
    """Int64 [B]: names the impression for keyed noise; in training it differs by epoch."""
    progress: Tensor | None
    """Float [B]: passes over the training data before this step, the same everywhere; it follows
    from the position alone, so a resumed training goes on where it was. None outside of training.
    """
    item_id: Tensor
    """Int64 [B] code."""
    category_id: Tensor
    """Int64 [B] code; 0 where the log has no category."""
    domain_id: Tensor | None
    """Int64 [B] code of the request's domain, if the model asks for it and the log has one."""


@dataclass(frozen=True)
class ModelInputs:
    """What a model reads of some impressions."""

    rows: dict[str, JaggedCodes]
    """Embedding rows by key of the layout: those of each impression, request or history, without
    padding."""
    dense: DenseInputs


class InputAssembler:
    """Turns impressions into what a model reads of a fixed number of places."""

    def __init__(
        self,
        layout: FeatureLayout,
        store: BehaviourSource,
        *,
        batch_size: PositiveInt,
        max_history_length: PositiveInt,
        seed: int,
        history_owner: str = "user_id",
        blocks: Blocks = "by_length",
    ) -> None:
        """Make an assembler.

        Args:
            layout: tables, keys and forms of the history.
            store: the behaviours.
            batch_size: places in a batch.
            max_history_length: behaviours of a sequence, the most recent ones.
            seed: seed of the training noise.
            history_owner: request column that says whose behaviours in the store count.
            blocks: how sequences are grouped.
        """
        self.layout = layout
        self._histories = HistoryReader(
            store, layout, max_length=max_history_length, owner=history_owner
        )
        self.batch_size = batch_size
        self._seed = seed
        self._blocks: Blocks = blocks
        self._shortest_recent = layout.history.shortest_served(max_history_length)

    def assemble(
        self, impressions: Impressions, *, epoch: int | None, progress: float = 0.0
    ) -> ModelInputs:
        """What a model reads of at most batch_size impressions; missing ones become padding.

        Args:
            impressions: the impressions, possibly none.
            epoch: training epoch, which enters the noise keys; None in evaluation, where neither
                a part of a history nor a stranger is drawn.
            progress: passes over the training data before this step, in training.

        Raises:
            DatasetError: an id lies beyond its table, or the history is damaged.
        """
        count = len(impressions.request_index)
        draw = None if epoch is None else epoch_draw(epoch, self._seed)
        histories = self._histories.read(impressions, draw=draw)
        bags = self._columns(impressions) | histories.bags
        category = np.zeros(count, dtype=np.int64)
        if self.layout.category_key is not None:
            category = impressions.candidate[self.layout.category_key].astype(np.int64)
        domain = None
        if self.layout.domain_key is not None:
            domain = self.padded(per_impression(impressions, self.layout.domain_key))
        dense = DenseInputs(
            bag_lengths=self._bag_lengths(bags),
            numbers=self._numbers(impressions),
            request_index=self.padded(impressions.request_index),
            pool_index=self.padded(histories.pool_index),
            gated=self._index(histories.gated),
            recent=self._index(histories.recent, shortest=self._shortest_recent),
            stranger=self._index(histories.stranger),
            history_counts=self.padded(histories.counts),
            key=self.padded(_keys(impressions, _NO_EPOCH if draw is None else draw)),
            progress=None if epoch is None else torch.full((self.batch_size,), progress),
            item_id=self.padded(impressions.candidate["item_id"].astype(np.int64)),
            category_id=self.padded(category),
            domain_id=domain,
        )
        return ModelInputs(self._rows(bags, impressions, histories.pool_index, draw), dense)

    def _columns(self, impressions: Impressions) -> dict[str, JaggedCodes]:
        """Codes of all features that are columns of the requests."""
        bags = {}
        once = {
            "candidate": np.ones(len(impressions.request_index), dtype=np.int64),
            "request": np.ones(len(impressions.request["request_id"]), dtype=np.int64),
        }
        for feature in self.layout.features:
            if feature.is_history:
                continue
            if feature.is_bag:
                bag = impressions.bags[feature.key]
                values, lengths = bag.values, bag.lengths
            else:
                columns = (
                    impressions.candidate if feature.slot == "candidate" else impressions.request
                )
                values, lengths = columns[feature.key], once[feature.slot]
            bags[feature.key] = JaggedCodes(values, lengths)
        return bags

    def _rows(
        self,
        bags: dict[str, JaggedCodes],
        impressions: Impressions,
        pool_index: np.ndarray,
        draw: int | None,
    ) -> dict[str, JaggedCodes]:
        """Embedding rows instead of codes."""
        if draw is None and sum(len(bag.values) for bag in bags.values()) <= FEW:
            keys = [feature.key for feature in self.layout.features]
            found = self.layout.own_rows.rows([bags[key].values for key in keys])
            return {
                key: JaggedCodes(own, bags[key].lengths)
                for key, own in zip(keys, found, strict=True)
            }
        index, ids = impressions.request_index, impressions.request["request_id"]
        pool = np.zeros(pool_index.max(initial=-1) + 1, dtype=np.int64)
        pool[pool_index] = index
        owners = {"candidate": ids[index]} | dict.fromkeys(
            ("pool", "daypart", "part", "gated"), ids[pool]
        )
        rows: dict[str, JaggedCodes] = {}
        for name, features in self.layout.features_of_tables.items():
            of_table, table = [bags[feature.key] for feature in features], self.layout.tables[name]
            codes = np.concatenate([bag.values for bag in of_table])
            if draw is None or not table.dropout:
                found = table.rows(codes)
            else:
                request = [
                    np.repeat(owners.get(feature.slot, ids), bag.lengths)
                    for feature, bag in zip(features, of_table, strict=True)
                ]
                found = with_dropout(table, codes, np.concatenate(request), draw=draw)
            ends = itertools.accumulate(len(bag.values) for bag in of_table)
            for feature, bag, end in zip(features, of_table, ends, strict=True):
                own = found[end - len(bag.values) : end]
                rows[feature.key] = JaggedCodes(own, bag.lengths)
        return rows

    def _index(
        self, columns: SequenceColumns | None, *, shortest: int = SHORTEST_BLOCK
    ) -> SequenceIndex | None:
        if columns is None:
            return None
        return index_sequences(
            columns, batch_size=self.batch_size, blocks=self._blocks, shortest=shortest
        )

    def _bag_lengths(self, bags: dict[str, JaggedCodes]) -> torch.Tensor:
        lengths = np.zeros((self.batch_size, len(self.layout.bags)), dtype=np.float32)
        for column, feature in enumerate(self.layout.bags):
            own = bags[feature.key].lengths
            lengths[: len(own), column] = own
        return torch.from_numpy(lengths)

    def _numbers(self, impressions: Impressions) -> torch.Tensor:
        numbers = np.zeros((self.batch_size, len(self.layout.numbers)), dtype=np.float32)
        count = len(impressions.request_index)
        for column, feature in enumerate(self.layout.numbers):
            if feature.level == "candidate":
                raw = impressions.candidate[feature.name]
            else:
                raw = per_impression(impressions, feature.name, np.float64)
            numbers[:count, column] = feature.standardise(raw)
        return torch.from_numpy(numbers)

    def padded(self, column: np.ndarray) -> torch.Tensor:
        """A column of the impressions with zeros in the places of padding."""
        padded = np.zeros((self.batch_size, *column.shape[1:]), dtype=column.dtype)
        padded[: len(column)] = column
        return torch.from_numpy(padded)


def _keys(impressions: Impressions, draw: int) -> np.ndarray:
    """Name of each impression: its request and item; in training also seed and epoch."""
    request = per_impression(impressions, "request_id")
    item = impressions.candidate["item_id"].astype(np.int64)
    return impression_key(request, item, draw)


def per_impression(
    impressions: Impressions, name: str, dtype: type[np.generic] = np.int64
) -> np.ndarray:
    """A column of the requests, once for each of their impressions."""
    return impressions.request[name][impressions.request_index].astype(dtype)
