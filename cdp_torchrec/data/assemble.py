"""From a run of impressions to a Batch: id rows, gated histories, padding, keys."""

# B impressions, M bag features, N numbers

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.data.batch import Batch, DenseInputs
from cdp_torchrec.data.history_reader import HistoryReader, JaggedCodes
from cdp_torchrec.data.history_store import BehaviourSource
from cdp_torchrec.data.id_dropout import with_dropout
from cdp_torchrec.data.layout import FeatureLayout, SparseFeature
from cdp_torchrec.data.own_rows import FEW
from cdp_torchrec.data.request_files import Impressions, ListColumn
from cdp_torchrec.data.sequence_index import Blocks, SequenceColumns, SequenceIndex, index_sequences
from cdp_torchrec.keyed_random import impression_key

_NO_EPOCH = 0


@dataclass(frozen=True)
class ModelInputs:
    """What a model reads of some impressions."""

    rows: dict[str, JaggedCodes]
    """Embedding rows by key of the layout: those of each impression, request or history, without
    padding."""
    dense: DenseInputs


class BatchAssembler:
    """Turns impressions into batches of a fixed number of places."""

    def __init__(
        self,
        layout: FeatureLayout,
        store: BehaviourSource,
        *,
        batch_size: PositiveInt,
        max_history_length: PositiveInt,
        seed: NonNegativeInt,
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
        self._layout = layout
        self._histories = HistoryReader(
            store, layout, max_length=max_history_length, owner=history_owner
        )
        self._batch_size = batch_size
        self._seed = seed
        self._blocks: Blocks = blocks
        self._recent_length: int | None = None
        if blocks == "one":
            self._recent_length = layout.history.served_recent_length(max_history_length)

    def assemble(
        self, impressions: Impressions, *, epoch: int | None, progress: float = 0.0
    ) -> Batch:
        """The batch of at most batch_size impressions; missing ones become padding.

        Args:
            impressions: the impressions, possibly none.
            epoch: training epoch, which enters the noise keys; None in evaluation, where neither
                a part of a history nor a stranger is drawn.
            progress: passes over the training data before this step, in training.

        Raises:
            DatasetError: an id lies beyond its table, or the history is damaged.
        """
        inputs = self.read(impressions, epoch=epoch, progress=progress)
        count = len(impressions.request_index)
        return Batch(
            **vars(inputs.dense),
            sparse=self._jagged(self._layout.pooled_features, inputs.rows),
            sequence=self._sequence_ids(inputs.rows),
            labels=self._padded(impressions.candidate["label"].astype(np.float32)),
            weights=self._padded(np.ones(count, dtype=np.float32)),
            user_id=self._padded(_per_impression(impressions, "user_id")),
            request_id=self._padded(_per_impression(impressions, "request_id")),
            history_length=self._padded(_per_impression(impressions, "history_length")),
            history_rank=self._padded(impressions.candidate["history_rank"].astype(np.int64)),
        )

    def read(
        self, impressions: Impressions, *, epoch: int | None, progress: float = 0.0
    ) -> ModelInputs:
        """What a model reads of the same, without labels and what only evaluation needs."""
        count = len(impressions.request_index)
        draw = None if epoch is None else 1 + epoch + (self._seed << 20)
        histories = self._histories.read(impressions, draw=draw)
        bags = self._columns(impressions) | histories.bags
        category = np.zeros(count, dtype=np.int64)
        if self._layout.category_key is not None:
            category = impressions.candidate[self._layout.category_key].astype(np.int64)
        domain = None
        if self._layout.domain_key is not None:
            domain = self._padded(_per_impression(impressions, self._layout.domain_key))
        dense = DenseInputs(
            bag_lengths=self._bag_lengths(bags),
            numbers=self._numbers(impressions),
            request_index=self._padded(impressions.request_index),
            pool_index=self._padded(histories.pool_index),
            gated=self._index(histories.gated),
            recent=self._index(histories.recent, length=self._recent_length),
            stranger=self._index(histories.stranger),
            history_counts=self._padded(histories.counts),
            key=self._padded(_keys(impressions, _NO_EPOCH if draw is None else draw)),
            progress=None if epoch is None else torch.full((self._batch_size,), progress),
            item_id=self._padded(impressions.candidate["item_id"].astype(np.int64)),
            category_id=self._padded(category),
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
        for feature in self._layout.features:
            if feature.slot not in ("candidate", "request"):
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
            keys = [feature.key for feature in self._layout.features]
            found = self._layout.own_rows.rows([bags[key].values for key in keys])
            return {
                key: JaggedCodes(own, bags[key].lengths)
                for key, own in zip(keys, found, strict=True)
            }
        index, ids = impressions.request_index, impressions.request["request_id"]
        pool = np.zeros(pool_index.max(initial=-1) + 1, dtype=np.int64)
        pool[pool_index] = index
        owners = {"candidate": ids[index]} | dict.fromkeys(("pool", "part", "gated"), ids[pool])
        rows: dict[str, JaggedCodes] = {}
        for name, features in self._layout.features_of_tables.items():
            of_table, table = [bags[feature.key] for feature in features], self._layout.tables[name]
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

    def _jagged(
        self, features: tuple[SparseFeature, ...], rows: dict[str, JaggedCodes]
    ) -> KeyedJaggedTensor:
        """Embedding rows of some features, stride B."""
        lengths = np.zeros((len(features), self._batch_size), dtype=np.int64)
        values = [np.zeros(0, dtype=np.int64)]
        for place, feature in zip(lengths, features, strict=True):
            bag = rows[feature.key]
            place[: len(bag.lengths)] = bag.lengths
            values.append(bag.values)
        return KeyedJaggedTensor(
            keys=[feature.key for feature in features],
            values=torch.from_numpy(np.concatenate(values)),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            stride=self._batch_size,
        )

    def _sequence_ids(self, rows: dict[str, JaggedCodes]) -> KeyedJaggedTensor | None:
        features = self._layout.sequence_features
        if not features:
            return None
        single = {f.key for f in features if not (f.is_bag or f.is_sequence)}
        return self._jagged(
            features, {k: self._filled(r) if k in single else r for k, r in rows.items()}
        )

    def _filled(self, rows: JaggedCodes) -> JaggedCodes:
        """One row at every place of the batch, 0 for padding."""
        values = np.zeros(self._batch_size, dtype=np.int64)
        values[: len(rows.values)] = rows.values
        return JaggedCodes(values, np.ones(self._batch_size, dtype=np.int64))

    def _index(
        self, columns: SequenceColumns | None, *, length: int | None = None
    ) -> SequenceIndex | None:
        if columns is None:
            return None
        return index_sequences(
            columns, batch_size=self._batch_size, blocks=self._blocks, block_length=length
        )

    def _bag_lengths(self, bags: dict[str, JaggedCodes]) -> torch.Tensor:
        lengths = np.zeros((self._batch_size, len(self._layout.bags)), dtype=np.float32)
        for column, feature in enumerate(self._layout.bags):
            own = bags[feature.key].lengths
            lengths[: len(own), column] = own
        return torch.from_numpy(lengths)

    def _numbers(self, impressions: Impressions) -> torch.Tensor:
        numbers = np.zeros((self._batch_size, len(self._layout.numbers)), dtype=np.float32)
        count = len(impressions.request_index)
        for column, feature in enumerate(self._layout.numbers):
            if feature.level == "candidate":
                raw = impressions.candidate[feature.name]
            else:
                raw = _per_impression(impressions, feature.name, np.float64)
            numbers[:count, column] = feature.standardise(raw)
        return torch.from_numpy(numbers)

    def _padded(self, column: np.ndarray) -> torch.Tensor:
        padded = np.zeros((self._batch_size, *column.shape[1:]), dtype=column.dtype)
        padded[: len(column)] = column
        return torch.from_numpy(padded)


def _keys(impressions: Impressions, draw: int) -> np.ndarray:
    """Name of each impression: its request and item; in training also seed and epoch."""
    request = _per_impression(impressions, "request_id")
    item = impressions.candidate["item_id"].astype(np.int64)
    return impression_key(request, item, draw)


def _per_impression(
    impressions: Impressions, name: str, dtype: type[np.generic] = np.int64
) -> np.ndarray:
    return impressions.request[name][impressions.request_index].astype(dtype)


def no_impressions(example: Impressions) -> Impressions:
    """A run of no impressions with the columns of another: the share of a rank without any."""
    nothing = np.zeros(1, dtype=np.int64)
    return Impressions(
        request={name: column[:0] for name, column in example.request.items()},
        bags={name: ListColumn(bag.values[:0], nothing) for name, bag in example.bags.items()},
        candidate={name: column[:0] for name, column in example.candidate.items()},
        request_index=example.request_index[:0],
    )
