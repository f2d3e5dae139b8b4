"""What a module hands over otherwise than declared is named where it enters the model."""

import pytest
import torch
from torch import Tensor

from cdp_torchrec.interest.base import (
    InterestInput,
    InterestModule,
    InterestOutput,
    check_output,
)


class Declared(InterestModule):
    """Declares an interest of width 3 and one loss."""

    def __init__(self) -> None:
        super().__init__()
        self.interest_dim = 3
        self.loss_weights = {"own": 0.1}

    def forward(self, inputs: InterestInput) -> InterestOutput:
        raise NotImplementedError


def output(width: int = 3, *, monitor: Tensor | None = None, **losses: Tensor) -> InterestOutput:
    monitors = {} if monitor is None else {"gate": monitor}
    return InterestOutput(interest=torch.zeros(4, width), losses=losses, monitors=monitors)


OWN = torch.zeros(4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (output(2, own=OWN), r"Declared: interest: expected \(4, 3\), found \(4, 2\)"),
        (output(own=OWN.mean()), r"own \(a loss, unreduced\): expected \(4,\), found \(\)"),
        (output(own=torch.zeros(4, 3)), r"own .*: expected \(4,\), found \(4, 3\)"),
        (output(own=OWN, monitor=OWN), r"gate \(a monitor\): expected \(\), found \(4,\)"),
        (output(), r"expected those of loss_weights, \['own'\], found none"),
        (output(own=OWN, other=OWN), r"loss_weights, \['own'\], found \['other', 'own'\]"),
    ],
    ids=["width", "mean", "matrix", "monitor", "forgotten", "undeclared"],
)
def test_an_output_that_was_not_declared_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        check_output(Declared(), given, batch_size=4)


def test_a_loss_outside_of_training_is_named():
    module = Declared().eval()
    check_output(module, output(), batch_size=4)
    with pytest.raises(ValueError, match=r"eval: expected none, found \['own'\]"):
        check_output(module, output(own=OWN), batch_size=4)
