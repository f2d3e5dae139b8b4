"""Work of the denoiser, and how fast this machine multiplies matrices: what a share is taken of."""

# B candidates, K denoiser calls

from dataclasses import dataclass

import torch
from torch import nn

from cdp_torchrec.diffusion.denoiser import ConditionedDenoiser
from cdp_torchrec.timer import Timer

_BYTES = 4
_LARGE = {"cpu": 1024, "cuda": 8192}
_TRIALS = 50
_FIRST_TRIALS = 3
_TRIAL_S = 0.001


@dataclass(frozen=True)
class DenoiserCost:
    """Work of all denoiser calls of a request."""

    flops: int
    """Of the matrix products: 2 for each multiplication with addition."""
    bytes: int
    """Smallest possible traffic: parameters, start state, modulation and result, each once."""


@dataclass(frozen=True)
class MatrixRate:
    """Measured rates of torch.mm, in 1e9 floating-point operations per second."""

    same_shapes: float
    """At the shapes of the denoiser's layers, one after the other."""
    large: float
    """At a size where the rate is the machine's, as `product_rate` gives it."""


def denoiser_cost(
    denoiser: ConditionedDenoiser, *, num_candidates: int, num_inference_steps: int
) -> DenoiserCost:
    """Work of the loop for one request.

    Args:
        denoiser: the network.
        num_candidates: B.
        num_inference_steps: K.
    """
    layers = linear_layers(denoiser)
    products = sum(layer.in_features * layer.out_features for layer in layers)
    parameters = sum(p.numel() for layer in layers for p in layer.parameters())
    dim, width = layers[0].in_features, len(denoiser.network.modulation_bias)
    of_steps = num_inference_steps * width
    return DenoiserCost(
        flops=2 * num_candidates * num_inference_steps * products,
        bytes=_BYTES * (parameters + of_steps + num_candidates * (2 * dim + width)),
    )


def linear_layers(denoiser: ConditionedDenoiser) -> list[nn.Linear]:
    """Layers that every denoiser call runs through."""
    network = denoiser.network
    middle = [layer for layer in network.middle if isinstance(layer, nn.Linear)]
    return [network.first, *middle, network.last]


def matrix_rate(
    denoiser: ConditionedDenoiser, num_candidates: int, device: torch.device, timer: Timer
) -> MatrixRate:
    """The machine's rate now, best of a few trials.

    Args:
        denoiser: the network.
        num_candidates: B.
        device: where to compute.
        timer: measures products on it.
    """
    shapes = [(num_candidates, n.in_features, n.out_features) for n in linear_layers(denoiser)]
    flops = sum(2 * rows * inner * columns for rows, inner, columns in shapes)
    seconds = sum(_product_s(*shape, device, timer) for shape in shapes)
    return MatrixRate(
        same_shapes=flops / seconds / 1e9,
        large=product_rate(device, timer),
    )


def product_rate(device: torch.device, timer: Timer) -> float:
    """The machine's rate of large products as exact as float32, in 1e9 operations per second.

    On a GPU of its float32 units, or a third of what its tensor cores do in TF32, three products of
    which are as exact; whichever is faster.
    """
    size = _LARGE[device.type]
    seconds = _product_s(size, size, size, device, timer)
    if device.type == "cuda":
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        seconds = min(seconds, 3 * _product_s(size, size, size, device, timer))
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return 2 * size**3 / seconds / 1e9


def _product_s(rows: int, inner: int, columns: int, device: torch.device, timer: Timer) -> float:
    left = torch.randn(rows, inner, device=device)
    right = torch.randn(inner, columns, device=device)
    result = torch.empty(rows, columns, device=device)

    def run(count: int) -> float:
        def products() -> None:
            for _ in range(count):
                torch.mm(left, right, out=result)

        return timer.ms(products) / count / 1e3

    # Trials short enough that some are not interrupted.
    count = max(1, int(_TRIAL_S / min(run(3) for _ in range(_FIRST_TRIALS))))
    return min(run(count) for _ in range(_TRIALS))
