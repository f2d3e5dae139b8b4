"""From a run of impressions to a Batch: id rows, gated histories, padding, keys."""

# B impressions, R requests, G gated histories, K recency segments, M bag features, N numbers

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.config import Config
from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.history import HistoryStore
from cdp_torchrec.data.layout import FeatureLayout, SparseFeature
from cdp_torchrec.data.requests import Bag, Impressions

_NO_EPOCH = 0


class HistoryConfig(Config):
    """How much of the gated history a model sees."""

    max_length: PositiveInt = 100
    """Behaviours kept: the most recent ones in the target item's category. The paper's users
    have 2000 behaviours on average."""


@dataclass(frozen=True)
class _Bags:
    """Bags of one key, without the empty ones at the end."""

    values: np.ndarray
    lengths: np.ndarray


class BatchAssembler:
    """Turns impressions into batches of a fixed number of places."""

    def __init__(
        self,
        layout: FeatureLayout,
        store: HistoryStore,
        *,
        batch_size: PositiveInt,
        recency_segments: tuple[int, ...],
        max_history_length: PositiveInt,
        category_feature: str | None,
        seed: NonNegativeInt,
    ) -> None:
        """Make an assembler.

        Args:
            layout: tables and keys; its num_segments is len(recency_segments) + 1, or 0.
            store: the behaviours.
            batch_size: places in a batch.
            recency_segments: sizes of the most recent segments of the gated history.
            max_history_length: behaviours kept in all segments together.
            category_feature: candidate feature with the category of the gate, if any.
            seed: seed of the training noise.
        """
        self._layout = layout
        self._store = store
        self._batch_size = batch_size
        self._segments = recency_segments
        self._max_history_length = max_history_length
        self._category_feature = category_feature
        self._seed = seed

    def assemble(self, impressions: Impressions, *, epoch: int | None) -> Batch:
        """The batch of at most batch_size impressions; missing ones become padding.

        Args:
            impressions: the impressions, possibly none.
            epoch: training epoch, which enters the noise keys; None in evaluation.

        Raises:
            DatasetError: an id lies beyond its table, or the history is damaged.
        """
        bags = self._bags_of_columns(impressions)
        count = len(impressions.request_index)
        history_index = np.zeros(count, dtype=np.int64)
        matches = np.zeros((count, self._layout.num_segments), dtype=np.float32)
        if self._layout.num_segments:
            history_index, history, matches = self._gated_history(impressions)
            bags.update(history)
        return Batch(
            sparse=self._jagged(bags),
            bag_lengths=self._bag_lengths(bags),
            numbers=self._numbers(impressions),
            request_index=self._padded(impressions.request_index),
            history_index=self._padded(history_index),
            history_matches=self._padded(matches),
            labels=self._padded(impressions.candidate["label"].astype(np.float32)),
            weights=self._padded(np.ones(count, dtype=np.float32)),
            key=self._padded(self._keys(impressions, epoch)),
            user_id=self._padded(_per_impression(impressions, "user_id")),
            request_id=self._padded(_per_impression(impressions, "request_id")),
            item_id=self._padded(impressions.candidate["item_id"].astype(np.int64)),
            history_length=self._padded(_per_impression(impressions, "history_length")),
            history_rank=self._padded(impressions.candidate["history_rank"].astype(np.int64)),
        )

    def _bags_of_columns(self, impressions: Impressions) -> dict[str, _Bags]:
        bags = {}
        for feature in self._layout.features:
            if feature.slot == "history":
                continue
            if feature.is_bag:
                bag = impressions.bags[feature.key]
                values, lengths = bag.values, np.diff(bag.offsets)
            else:
                columns = (
                    impressions.candidate if feature.slot == "candidate" else impressions.request
                )
                values = columns[feature.key]
                lengths = np.ones(len(values), dtype=np.int64)
            bags[feature.key] = _Bags(self._rows(feature, values), lengths)
        return bags

    def _rows(self, feature: SparseFeature, codes: np.ndarray) -> np.ndarray:
        return self._layout.tables[feature.table].rows(codes)

    def _gated_history(
        self, impressions: Impressions
    ) -> tuple[np.ndarray, dict[str, _Bags], np.ndarray]:
        """Category gate (paper eq. 2) once per (request, category), cut into recency segments.

        Returns:
            The gated history of each impression, [B]; its bags by key; and how many behaviours
            of each segment are on the target item itself, [B, K].
        """
        request = impressions.request_index
        category = np.zeros(len(request), dtype=np.int64)
        if self._category_feature is not None:
            category = impressions.candidate[self._category_feature].astype(np.int64)
        span = int(category.max(initial=0)) + 1
        groups, history_index = np.unique(request * span + category, return_inverse=True)
        request, category = np.divmod(groups, span)
        before = impressions.request["timestamp"][request]
        behaviours, whole = self._store.gated(
            impressions.request["user_id"][request], category, before
        )
        whole = whole.last(self._max_history_length)
        behaviours.check(whole, before)
        bags, matches, skip = {}, [], 0
        features = [f for f in self._layout.features if f.slot == "history"]
        for feature, size in zip(
            features, [*self._segments, self._max_history_length], strict=True
        ):
            segment = whole.last(size, skip=skip)
            skip += size
            items = np.asarray(behaviours.item[segment.rows()])
            bags[feature.key] = _Bags(self._rows(feature, items), segment.lengths)
            owner = np.repeat(np.arange(len(request)), segment.lengths)
            matches.append(
                _count_matches(owner, items, history_index, impressions.candidate["item_id"])
            )
        return history_index, bags, np.stack(matches, axis=1)

    def _jagged(self, bags: dict[str, _Bags]) -> KeyedJaggedTensor:
        keys = [feature.key for feature in self._layout.features]
        lengths = np.zeros((len(keys), self._batch_size), dtype=np.int64)
        for row, key in zip(lengths, keys, strict=True):
            row[: len(bags[key].lengths)] = bags[key].lengths
        return KeyedJaggedTensor(
            keys=keys,
            values=torch.from_numpy(np.concatenate([bags[key].values for key in keys])),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            stride=self._batch_size,
        )

    def _bag_lengths(self, bags: dict[str, _Bags]) -> torch.Tensor:
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
            # A missing number is read as the mean, which standardises to 0.
            numbers[:count, column] = np.nan_to_num((raw - feature.mean) / feature.std)
        return torch.from_numpy(numbers)

    def _keys(self, impressions: Impressions, epoch: int | None) -> np.ndarray:
        """Name of each impression: its request and item; in training also seed and epoch."""
        request = _per_impression(impressions, "request_id")
        item = impressions.candidate["item_id"].astype(np.int64)
        draw = _NO_EPOCH if epoch is None else 1 + epoch + (self._seed << 20)
        with np.errstate(over="ignore"):
            return ((request * 0x1000003 + item) * 0x1000003 + draw).astype(np.int64)

    def _padded(self, column: np.ndarray) -> torch.Tensor:
        padded = np.zeros((self._batch_size, *column.shape[1:]), dtype=column.dtype)
        padded[: len(column)] = column
        return torch.from_numpy(padded)


def _count_matches(
    owner: np.ndarray, items: np.ndarray, history_index: np.ndarray, item_id: np.ndarray
) -> np.ndarray:
    """Number of a history's items that equal each impression's item, float [B]."""
    found, counts = np.unique((owner << 32) | items, return_counts=True)
    wanted = (history_index << 32) | item_id
    if not len(found):
        return np.zeros(len(wanted), dtype=np.float32)
    place = np.minimum(np.searchsorted(found, wanted), len(found) - 1)
    return np.where(found[place] == wanted, counts[place], 0).astype(np.float32)


def _per_impression(
    impressions: Impressions, name: str, dtype: type[np.generic] = np.int64
) -> np.ndarray:
    return impressions.request[name][impressions.request_index].astype(dtype)


def no_impressions(example: Impressions) -> Impressions:
    """A run of no impressions with the columns of another: the share of a rank without any."""
    nothing = np.zeros(1, dtype=np.int64)
    return Impressions(
        request={name: column[:0] for name, column in example.request.items()},
        bags={name: Bag(bag.values[:0], nothing) for name, bag in example.bags.items()},
        candidate={name: column[:0] for name, column in example.candidate.items()},
        request_index=example.request_index[:0],
    )
