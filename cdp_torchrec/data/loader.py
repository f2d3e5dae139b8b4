"""Batches of one rank, addressed by step: the same global order for every number of ranks."""

import copy
from dataclasses import dataclass

from cdp_torchrec.data.assemble import BatchAssembler, no_impressions
from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.requests import ImpressionOrder


@dataclass(frozen=True)
class Share:
    """Which part of each global batch this rank takes."""

    rank: int
    world_size: int


class _Shares:
    """This rank's shares of global batches."""

    def __init__(
        self,
        order: ImpressionOrder,
        assembler: BatchAssembler,
        *,
        global_batch_size: int,
        share: Share,
    ) -> None:
        """Cut global batches out of an order.

        Args:
            order: the impressions.
            assembler: makes batches of global_batch_size / world_size places.
            global_batch_size: impressions per step over all ranks.
            share: this rank's share.
        """
        self._order = order
        self._assembler = assembler
        self._global = global_batch_size
        self._share = share


class TrainBatches(_Shares):
    """Training batches: index p is this rank's share of the global batch at position p.

    Positions count impressions over all epochs. A global batch never spans two epochs: the rest
    of an epoch that does not fill one is dropped.
    """

    def aligned(self, position: int) -> int:
        """The position itself, or the start of the next epoch if no global batch fits before."""
        epoch, offset = divmod(position, self._order.num_impressions)
        if offset + self._global > self._order.num_impressions:
            return (epoch + 1) * self._order.num_impressions
        return position

    def positions(self, position: int, num_steps: int) -> list[int]:
        """Positions of the next global batches."""
        found = []
        for _ in range(num_steps):
            position = self.aligned(position)
            found.append(position)
            position += self._global
        return found

    def __getitem__(self, index: int) -> Batch:
        epoch, offset = divmod(index, self._order.num_impressions)
        size = self._global // self._share.world_size
        start = offset + self._share.rank * size
        return self._assembler.assemble(
            self._order.take(epoch, start, start + size),
            epoch=epoch,
            progress=index / self._order.num_impressions,
        )


class EvaluationBatches(_Shares):
    """All impressions once, in file order; item s is this rank's share of step s.

    The tail is padded, so all ranks have equally many batches.
    """

    _stop: int | None = None

    def of(self, order: ImpressionOrder) -> "EvaluationBatches":
        """Batches like these of other impressions."""
        batches = copy.copy(self)
        batches._order = order
        return batches

    def first(self, num_impressions: int) -> "EvaluationBatches":
        """The first impressions only."""
        batches = copy.copy(self)
        batches._stop = min(num_impressions, self._order.num_impressions)
        return batches

    @property
    def num_impressions(self) -> int:
        """Impressions in all batches of all ranks."""
        return self._order.num_impressions if self._stop is None else self._stop

    def __len__(self) -> int:
        return -(-self.num_impressions // self._global)

    def __getitem__(self, index: int) -> Batch:
        size = self._global // self._share.world_size
        total = self.num_impressions
        start = min(index * self._global + self._share.rank * size, total)
        stop = min(start + size, total)
        if start < stop:
            impressions = self._order.take(0, start, stop)
        else:
            impressions = no_impressions(self._order.take(0, 0, 1))
        return self._assembler.assemble(impressions, epoch=None)
