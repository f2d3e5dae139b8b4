"""From a run of impressions to a Batch: keyed jagged tensors, labels, what evaluation needs."""

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.jagged_codes import JaggedCodes
from cdp_torchrec.data.layout import SparseFeature
from cdp_torchrec.data.model_inputs import InputAssembler, per_impression
from cdp_torchrec.data.request_files import Impressions, ListColumn


class BatchAssembler:
    """Turns impressions into batches of a fixed number of places."""

    def __init__(self, inputs: InputAssembler) -> None:
        """Args: makes what the model reads of them."""
        self._inputs = inputs

    def assemble(
        self, impressions: Impressions, *, epoch: int | None, progress: float = 0.0
    ) -> Batch:
        """The batch of at most batch_size impressions: arguments, errors as of InputAssembler."""
        inputs = self._inputs.assemble(impressions, epoch=epoch, progress=progress)
        count = len(impressions.request_index)
        padded = self._inputs.padded
        return Batch(
            **vars(inputs.dense),
            sparse=self._jagged(self._inputs.layout.pooled_features, inputs.rows),
            sequence=self._sequence_ids(inputs.rows),
            labels=padded(impressions.candidate["label"].astype(np.float32)),
            weights=padded(np.ones(count, dtype=np.float32)),
            user_id=padded(per_impression(impressions, "user_id")),
            request_id=padded(per_impression(impressions, "request_id")),
            history_length=padded(per_impression(impressions, "history_length")),
            history_rank=padded(impressions.candidate["history_rank"].astype(np.int64)),
        )

    def _jagged(
        self, features: tuple[SparseFeature, ...], rows: dict[str, JaggedCodes]
    ) -> KeyedJaggedTensor:
        """Embedding rows of some features, stride B."""
        lengths = np.zeros((len(features), self._inputs.batch_size), dtype=np.int64)
        values = [np.zeros(0, dtype=np.int64)]
        for place, feature in zip(lengths, features, strict=True):
            bag = rows[feature.key]
            place[: len(bag.lengths)] = bag.lengths
            values.append(bag.values)
        return KeyedJaggedTensor(
            keys=[feature.key for feature in features],
            values=torch.from_numpy(np.concatenate(values)),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            stride=self._inputs.batch_size,
        )

    def _sequence_ids(self, rows: dict[str, JaggedCodes]) -> KeyedJaggedTensor | None:
        features = self._inputs.layout.sequence_features
        if not features:
            return None
        single = {f.key for f in features if not (f.is_bag or f.is_sequence)}
        return self._jagged(
            features, {k: self._filled(r) if k in single else r for k, r in rows.items()}
        )

    def _filled(self, rows: JaggedCodes) -> JaggedCodes:
        """One row at every place of the batch, 0 for padding."""
        values = np.zeros(self._inputs.batch_size, dtype=np.int64)
        values[: len(rows.values)] = rows.values
        return JaggedCodes(values, np.ones(self._inputs.batch_size, dtype=np.int64))


def no_impressions(example: Impressions) -> Impressions:
    """A run of no impressions with the columns of another: the share of a rank without any."""
    nothing = np.zeros(1, dtype=np.int64)
    return Impressions(
        request={name: column[:0] for name, column in example.request.items()},
        bags={name: ListColumn(bag.values[:0], nothing) for name, bag in example.bags.items()},
        candidate={name: column[:0] for name, column in example.candidate.items()},
        request_index=example.request_index[:0],
    )
