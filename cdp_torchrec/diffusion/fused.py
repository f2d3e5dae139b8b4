"""The whole reverse process as one GPU kernel: state and modulation stay on the chip, K steps long.

Eager, each step of each impression goes through the memory of the GPU some ten times and costs some
ten launches. Here a program takes a block of impressions, loads the weights of the denoiser and the
condition's modulation once, and writes nothing but the clean latent. It has no gradient, so that
training keeps the eager chain; `fits` says when it is used instead.
"""

# B impressions, D latent dim, H hidden width, M modulation width, K sampled steps

from dataclasses import dataclass
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor, nn

from cdp_torchrec.diffusion.denoiser import ConditionedMlp, Denoiser
from cdp_torchrec.diffusion.sampler import SamplingStep, denoise
from cdp_torchrec.diffusion.schedule import NoiseSchedule

_SMALLEST_DIM = 16
"""Of a matrix product of tensor cores."""


def linear_steps(schedule: NoiseSchedule, steps: tuple[SamplingStep, ...]) -> Tensor:
    """Factors of a chain, float32 [K, 5]: all but the denoiser is linear in state and correction.

    Those in x_0 = correction * first + x_t * second, and in
    x_next = x_t * third + x_0 * fourth + (x_0 of the step before) * fifth.

    Args:
        schedule: what a prediction means.
        steps: from `sampling_steps`.
    """
    rows = []
    # Floats do as well as tensors, and are numbers under a meta device, too.
    one, zero = cast(Tensor, 1.0), cast(Tensor, 0.0)
    for step in steps:

        def x_0(correction: Tensor, x_t: Tensor, timestep: int = step.timestep) -> float:
            prediction = correction + schedule.noise_free_prediction(x_t, timestep)
            return float(schedule.x_0_from(prediction, x_t, timestep))

        rows.append((x_0(one, zero), x_0(zero, one), step.state, step.x_0, step.previous_x_0))
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 5)


@dataclass  # not frozen: torch 2.12 cannot compile the call of one that is
class Chain:
    """A reverse process; calling it gives the clean latent [B, D] of start states [B, D]."""

    denoiser: Denoiser
    schedule: NoiseSchedule
    steps: tuple[SamplingStep, ...]
    factors: Tensor
    """The same steps on the device, from `linear_steps`."""
    modulation: Tensor
    """Part that depends on the condition, [B, M]; [M] without a condition."""
    step_modulation: Tensor
    """Part that depends on the step, [K, M]."""

    def __call__(self, x_start: Tensor) -> Tensor:
        """By the kernel where it fits, else step by step."""
        if self.steps and fits(self.denoiser, x_start):
            return self.fused(x_start)
        return self.eager(x_start)

    def eager(self, x_start: Tensor) -> Tensor:
        """Step by step, with gradients."""
        by_step = self.step_modulation.unbind()

        def predict_x_0(x_t: Tensor, index: int) -> Tensor:
            timestep = self.steps[index].timestep
            correction = self.denoiser(x_t, self.modulation + by_step[index])
            prediction = correction + self.schedule.noise_free_prediction(x_t, timestep)
            return self.schedule.x_0_from(prediction, x_t, timestep)

        return denoise(x_start, steps=self.steps, predict_x_0=predict_x_0)

    def fused(self, x_start: Tensor) -> Tensor:
        """By one kernel, without gradients; the layers must be of a shape that fits."""
        from cdp_torchrec.diffusion import fused_kernel  # on use: triton is not everywhere

        network = self.denoiser.network
        layers = _layers(network)
        in_graph = torch.compiler.is_compiling()
        launch = fused_kernel.launch_in_graph if in_graph else fused_kernel.launch
        return launch(
            x_start.contiguous(),
            self.modulation.expand(x_start.shape[0], -1).contiguous(),
            self.step_modulation.contiguous(),
            self.factors,
            *_weight_and_bias(layers[0]),
            *_weight_and_bias(layers[1]),  # of the last one again, where there is no middle one
            *_weight_and_bias(layers[-1]),
            join=network.condition_join,
            has_middle=len(layers) == 3,
        )


def fits(denoiser: Denoiser, x: Tensor) -> bool:
    """Whether the kernel computes this: on a GPU, without gradients, in float32, small and even.

    Args:
        denoiser: has one or two hidden layers of a power of two, which fit a program.
        x: the start state.
    """
    return (
        x.is_cuda
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cuda")
        and fits_program(denoiser.network, shared_bytes=_shared_bytes(x.device))
    )


def fits_program(network: ConditionedMlp, *, shared_bytes: int) -> bool:
    """Whether the layers are those of the kernel.

    Args:
        network: the layers.
        shared_bytes: shared memory that a program may take. 99 KiB on an A10 or L40S hold widths of
            16 and 64, 163 KiB on an A100 those and one layer of 32 and 128, 227 KiB on an H100 two.
    """
    hidden, dim = network.first.weight.shape
    weights = sum(layer.weight.numel() for layer in _layers(network))
    # As Triton 3.6 compiles it for any of them: each weight in two parts, and parts of a block.
    needed = 8 * weights + (280 if network.condition_join == "film" else 256) * hidden + 32 * dim
    return (
        len(network.middle) <= 1
        and dim >= _SMALLEST_DIM
        and all(width & (width - 1) == 0 for width in (dim, hidden))
        and needed <= shared_bytes
        and network.first.weight.dtype == torch.float32
    )


@torch.compiler.assume_constant_result
def _shared_bytes(device: torch.device) -> int:
    """Shared memory that a program may take on a GPU; none without Triton."""
    if find_spec("triton") is None:
        return 0
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 0)


def _layers(network: ConditionedMlp) -> list[nn.Linear]:
    middle = [layer for layer in network.middle if isinstance(layer, nn.Linear)]
    return [network.first, *middle, network.last]


def _weight_and_bias(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    # Without a bias the kernel reads any floats in its place, and does not use them.
    bias = layer.bias if layer.bias is not None else layer.weight
    return layer.weight.contiguous(), bias.contiguous()
