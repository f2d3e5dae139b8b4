"""Numerical tests hold with the kernels of other processors, whatever those round otherwise.

All tests run on a machine of another make before a change lands; these kernels are for a release.
"""

import os
import subprocess
import sys

import pytest
import torch

from tests.paths import ROOT
from tests.whole_matrix import only_whole

SETS = {
    "sse": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
}
"""What torch, oneDNN and MKL may use at most."""
NUMERICAL = [
    "tests/diffusion",
    "tests/interest",
    "tests/metrics",
    "tests/model",
    "tests/test_keyed_random.py",
    "tests/test_reference_scorers.py",
]
NOT_ROUNDED = "export or captures or gradients_reach"
"""Tests of programs, which compute what the others do, and of what is 0 or not."""


def supported(kernels: str) -> bool:
    match kernels:
        case "avx2":
            return torch.cpu._is_avx2_supported()
        case "avx512":
            return torch.cpu._is_avx512_supported()
    return True


@only_whole
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kernels", SETS)
def test_numerical_tests_pass_with_the_kernels_of(kernels: str) -> None:
    if not supported(kernels):
        pytest.skip(f"this processor has no {kernels}")
    # A pytest of its own, also where this one is a worker of another.
    inherited = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*pytest_command, *NUMERICAL, "-k", f"not ({NOT_ROUNDED})"],
        cwd=ROOT,
        env=inherited | SETS[kernels],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-8000:]
