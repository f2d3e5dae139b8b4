"""From encoded requests to the input tensors of the ranker."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from cdp_torchrec.data.history.store import BehaviourSource
from cdp_torchrec.data.layout import FeatureLayout
from cdp_torchrec.data.model_inputs import InputAssembler
from cdp_torchrec.data.schema import HistorySchema
from cdp_torchrec.serving.encode import EncodedRequest, collate
from cdp_torchrec.serving.encode_attributes import encode_attributes
from cdp_torchrec.serving.inline_histories import EncodedHistory, InlineHistories
from cdp_torchrec.serving.lookup import look_up
from cdp_torchrec.serving.ranker_inputs import ranker_inputs
from cdp_torchrec.serving.tables import EmbeddingTables
from cdp_torchrec.serving.vocabulary import LARGEST_CODE

_OWNER = "history_owner"
# index_sequences needs two places of padding to put all sequences in one block.
_PLACES_OF_PADDING = 2


class InputBuilder:
    """Assembles what the model reads as training does, and looks the embeddings up."""

    def __init__(
        self,
        layout: FeatureLayout,
        tables: EmbeddingTables,
        history: HistorySchema,
        *,
        max_history_length: int,
        history_store: BehaviourSource | None,
    ) -> None:
        """Make a builder.

        Args:
            layout: tables and keys.
            tables: the embeddings.
            history: what behaviours consist of.
            max_history_length: behaviours of a sequence, the most recent ones.
            history_store: behaviours of requests that bring none; None: they have none.
        """
        # An unknown id has a code beyond the vocabulary.
        of_any_id = {e: replace(t, num_ids=LARGEST_CODE) for e, t in layout.tables.items()}
        self._layout = replace(layout, tables=of_any_id)
        self._history = history
        self.tables = tables
        self._max_history_length = max_history_length
        self._store = history_store

    @property
    def has_history_store(self) -> bool:
        """Whether requests without behaviours get stored ones."""
        return self._store is not None

    @property
    def reads_history(self) -> bool:
        """Whether the model looks at behaviours."""
        layout = self._layout
        return any(f.is_history for f in layout.features) or layout.counts is not None

    def has_behaviours(self, request: EncodedRequest) -> bool:
        """Whether the request brings behaviours, or the store has some from before it."""
        if request.history is not None:
            return len(request.history.item) > 0
        if self._store is None or request.user > self._history.num_users:
            return False
        _, slices = self._store.recent(np.array([request.user]), np.array([request.timestamp]))
        return bool(slices.lengths[0])

    def build(self, requests: Sequence[EncodedRequest]) -> dict[str, Tensor]:
        """Inputs by name; the first places belong to the candidates of all requests in order.

        Args:
            requests: either all with behaviours of their own, or all without.
        """
        impressions = collate(requests)
        source, owner = self._histories(requests)
        impressions.request[_OWNER] = owner
        inputs = InputAssembler(
            self._layout,
            source,
            batch_size=len(impressions.request_index) + _PLACES_OF_PADDING,
            max_history_length=self._max_history_length,
            seed=0,
            history_owner=_OWNER,
            blocks="one",
        ).assemble(impressions, epoch=None)
        return ranker_inputs(look_up(self._layout, self.tables, inputs), inputs.dense)

    def _histories(self, requests: Sequence[EncodedRequest]) -> tuple[BehaviourSource, np.ndarray]:
        """Where behaviours come from, and what stands for each request's user there."""
        clustered = self._layout.history.clustered
        histories = [r.history for r in requests if r.history is not None]
        if histories:
            assert len(histories) == len(requests)
            return InlineHistories(histories, clustered=clustered), np.arange(len(requests))
        if self._store is not None:
            users = np.array([request.user for request in requests])
            # Nobody is user 0, so a user that the store does not know has no behaviours.
            return self._store, np.where(users <= self._history.num_users, users, 0)
        nothing = np.zeros(0, dtype=np.int64)
        empty = EncodedHistory(
            nothing,
            nothing,
            category=nothing if self._history.category_entity else None,
            action=nothing if self._history.action_entity else None,
            attributes=encode_attributes({}, self._history.attributes, {}, length=0, at_most=0),
        )
        nobody = InlineHistories([empty] * len(requests), clustered=clustered)
        return nobody, np.arange(len(requests))
