"""Requests of a test split with any number of candidates, as inputs of the dense part."""

# B places of the batch, L behaviours, D embedding dim

import numpy as np
import torch
from torch import Tensor

from cdp_torchrec.data.layout import FeatureLayout
from cdp_torchrec.data.model_inputs import DenseInputs
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.request_files import Impressions
from cdp_torchrec.data.requests import ImpressionOrder
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.serving.ranker_inputs import ranker_inputs

# As an artifact's ranker gets them: index_sequences needs two places to put all sequences in one
# block.
_PLACES_OF_PADDING = 2
_EXAMPLE_SIZE = 16


class LatencyRequests:
    """Some requests of the test split, each with its user's history."""

    layout: FeatureLayout
    """Keys and numbers as this model reads them."""
    example_size = _EXAMPLE_SIZE
    """Candidates of a request to compile with."""

    def __init__(self, config: ExperimentConfig, count: int, device: torch.device) -> None:
        """Read them.

        Args:
            config: dataset and model.
            count: number of requests, spread evenly over the split.
            device: where the inputs shall be.
        """
        self._reader = DatasetReader(config.data)
        self.layout = self._reader.layout(
            config.model.interest.history.served,
            history_counts=config.model.interaction.history_counts,
        )
        self.max_history_length = config.data.history.max_length
        self._dim = config.model.embedding_dim
        self._device = device
        order = self._reader.impressions("test")
        places = np.linspace(0, order.num_impressions - 1, count).astype(int)
        # The request that an impression belongs to, as far as it lies beside the impression.
        self._runs = [_around(order, int(place)) for place in places]

    def inputs(self, num_candidates: int) -> list[dict[str, Tensor]]:
        """Inputs of RankerProgram for each request, its candidates repeated or cut to a number."""
        assembler = self._reader.inputs(
            self.layout, batch_size=num_candidates + _PLACES_OF_PADDING, seed=0, blocks="one"
        )
        found = []
        for number, run in enumerate(self._runs):
            dense = assembler.assemble(_resized(run, num_candidates), epoch=None).dense
            inputs = ranker_inputs(self._embeddings(dense, seed=number), dense)
            found.append({name: tensor.to(self._device) for name, tensor in inputs.items()})
        return found

    def _embeddings(self, dense: DenseInputs, *, seed: int) -> dict[str, Tensor]:
        """Random ones: the time does not depend on their values."""
        generator = torch.Generator().manual_seed(seed)
        behaviours = {
            slot: len(index.item_id)
            for slot, index in (("gated", dense.gated), ("recent", dense.recent))
            if index is not None
        }
        return {
            f.key: 0.05
            * torch.randn(behaviours.get(f.slot, len(dense.key)), self._dim, generator=generator)
            for f in self.layout.features
        }


def _around(order: ImpressionOrder, place: int, reach: int = 50) -> Impressions:
    run = order.take(0, max(place - reach, 0), min(place + reach, order.num_impressions))
    owner = run.request_index[min(place, reach)]
    rows = np.flatnonzero(run.request_index == owner)
    return Impressions(
        request={name: column[[owner]] for name, column in run.request.items()},
        bags={name: bag.take(np.array([owner])) for name, bag in run.bags.items()},
        candidate={name: column[rows] for name, column in run.candidate.items()},
        request_index=np.zeros(len(rows), dtype=np.int64),
    )


def _resized(run: Impressions, num_candidates: int) -> Impressions:
    rows = np.arange(num_candidates) % len(run.request_index)
    return Impressions(
        request=run.request,
        bags=run.bags,
        candidate={name: column[rows] for name, column in run.candidate.items()},
        request_index=np.zeros(num_candidates, dtype=np.int64),
    )
