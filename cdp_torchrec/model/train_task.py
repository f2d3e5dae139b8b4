"""Model and losses together: what the train pipeline runs."""

# B impressions

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from cdp_torchrec.data.batch import Batch
from cdp_torchrec.model.ranking import RankingOutput
from cdp_torchrec.model.ranking_model import RankingModel


@dataclass(frozen=True)
class TrainOutput:
    """Results of one batch, detached."""

    logits: Tensor
    """[B]"""
    losses: Mapping[str, Tensor]
    """Scalars: `loss` (the sum that is minimised), `bce_loss`, and each auxiliary loss."""
    monitors: Mapping[str, Tensor]
    """Scalars of the interest module, of the first one if there are several."""


class TrainLoss(nn.Module):
    """Click loss plus weighted auxiliary losses (paper eqs. 11-13).

    Every term is divided by B, a constant, so that the mean over ranks is the same for every
    number of ranks.
    """

    def __init__(self, loss_weights: Mapping[str, float]) -> None:
        super().__init__()
        self._loss_weights = loss_weights

    def forward(
        self, output: RankingOutput, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, TrainOutput]:
        """Total loss, and everything worth logging.

        Args:
            output: what the model computed; of several sets of embeddings, each has its own losses,
                and all of them count the same.
            labels: float [B].
            weights: float [B], 0 for padding.
        """
        of_sets = [_losses(one, labels, weights) for one in output.sets or (output,)]
        losses = {name: _mean([found[name] for found in of_sets]) for name in of_sets[0]}
        total = losses["bce_loss"]
        for name, loss in losses.items():
            if name != "bce_loss":
                total = total + self._loss_weights[name] * loss
        return total, TrainOutput(
            logits=output.logits.detach(),
            losses={"loss": total.detach()} | {n: v.detach() for n, v in losses.items()},
            monitors=output.interest.monitors,
        )


def _losses(output: RankingOutput, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
    auxiliary = dict(output.interest.losses)
    for name, logits in output.interest.click_logits.items():
        auxiliary[name] = _click_loss(logits, labels)
    losses = {"bce_loss": _click_loss(output.logits, labels)} | auxiliary
    return {name: (weights * values).mean() for name, values in losses.items()}


def _mean(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).mean()


def _click_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")


class TrainTask(nn.Module):
    """The trainable wrapper of a ranking model."""

    def __init__(self, model: RankingModel) -> None:
        super().__init__()
        self.model = model
        self.loss = TrainLoss(model.ranking_arch.sets[0].interest.loss_weights)

    def monitor(self, wanted: bool) -> None:
        """Compute the monitors of the interest module from now on, or leave them out."""
        # A compiled program has them as a part; without them it would be another one to compile.
        for one in self.model.ranking_arch.sets:
            one.interest.monitored = wanted or self.model.is_compiled

    def forward(self, batch: Batch) -> tuple[Tensor, TrainOutput]:
        """Loss to minimise and the batch's results."""
        return self.loss(self.model(batch), batch.labels, batch.weights)
