"""The fused reverse process is the eager one, under Triton's interpreter and on a GPU."""

import os
import subprocess
import sys
from itertools import product

import pytest
import torch
from torch import Tensor

from cdp_torchrec.diffusion.config import DenoiserConfig, NoiseScheduleConfig
from cdp_torchrec.diffusion.denoiser import ConditionedMlp, Denoiser
from cdp_torchrec.diffusion.fused import Chain, fits_program, linear_steps
from cdp_torchrec.diffusion.sampler import sampling_steps
from cdp_torchrec.diffusion.schedule import NoiseSchedule
from tests.paths import ROOT

JOINS = ["add", "film", "adaln_zero"]
PREDICTIONS = ["epsilon", "x0", "v"]


def chains(join: str, prediction: str, *, hidden_layers: int, device: str) -> tuple[Tensor, Tensor]:
    """Ends of the fused and of the eager chain of 5 steps; the rows fill no whole block."""
    torch.manual_seed(0)
    dim, count = 16, 37
    config = DenoiserConfig.model_validate(
        {"condition_join": join, "num_hidden_layers": hidden_layers}
    )
    denoiser = Denoiser(config, dim=dim, condition_dim=8, num_train_timesteps=100).to(device)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    schedule = NoiseSchedule(
        NoiseScheduleConfig(),
        prediction_type=prediction,  # pyrefly: ignore[bad-argument-type]
    ).to(device)
    steps = sampling_steps(schedule, sampler="dpmpp_2m", start_timestep=100, num_inference_steps=5)
    x_start, condition = torch.randn(count, dim).to(device), torch.randn(count, 8).to(device)
    grid = torch.tensor([step.timestep for step in steps], device=device)
    chain = Chain(
        denoiser=denoiser,
        schedule=schedule,
        steps=steps,
        factors=linear_steps(schedule, steps).to(device),
        modulation=denoiser.modulation(condition),
        step_modulation=denoiser.time_modulation(grid),
    )
    return chain.fused(x_start), chain.eager(x_start)


@torch.no_grad()
def check_kernel(device: str) -> None:
    """Raises where the fused chain is not the eager one."""
    for join, prediction, layers in product(JOINS, PREDICTIONS, [1, 2]):
        fused, eager = chains(join, prediction, hidden_layers=layers, device=device)
        assert eager.abs().max() > 0.1
        torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-4, msg=f"{join} {prediction}")


A10, A100, H100 = 99 * 2**10, 163 * 2**10, 227 * 2**10


@pytest.mark.parametrize(
    ("dim", "layers", "join", "shared_bytes", "fit"),
    [
        (16, 2, "add", A10, True),
        (16, 2, "film", A10, True),
        (32, 2, "add", A100, False),
        (32, 1, "add", A100, True),
        (32, 2, "add", H100, True),
        (32, 2, "film", H100, False),  # one KiB too much
        (64, 2, "add", H100, False),  # 65,536 weights in the middle alone
        (8, 2, "add", H100, False),  # below the smallest product of tensor cores
        (24, 1, "add", H100, False),  # no power of two
        (16, 3, "add", H100, False),  # two layers in the middle
        (16, 1, "add", 0, False),  # no Triton
    ],
)
def test_the_kernel_is_for_small_networks_of_powers_of_two(
    dim: int, layers: int, join: str, shared_bytes: int, fit: bool
) -> None:
    config = DenoiserConfig.model_validate({"num_hidden_layers": layers, "condition_join": join})
    network = ConditionedMlp(config, dim=dim, condition_dim=0)
    assert fits_program(network, shared_bytes=shared_bytes) == fit


@pytest.mark.slow
def test_the_kernel_under_the_interpreter_is_the_eager_chain() -> None:
    """In a process of its own: Triton decides at its import whether it interprets."""
    pytest.importorskip("triton", reason="triton is not installed")
    command = [
        sys.executable,
        "-c",
        "from tests.diffusion import test_fused as t; t.check_kernel('cpu')",
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernel_on_a_gpu_is_the_eager_chain() -> None:
    check_kernel("cuda")
