"""What is compiled computes what it does when it is not: the reverse process, DIN's unit."""

import errno
import io
import math
import os
import re
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import aoti_load_package
from torch._inductor.exc import InductorError
from torch._inductor.runtime.cache_dir_utils import cache_dir

from cdp_torchrec.diffusion.config import DenoiserConfig
from cdp_torchrec.interest import CdpConfig, CdpInterest, InterestDims, build_interest
from cdp_torchrec.interest.config.attention import ActivationUnitConfig
from cdp_torchrec.interest.din import ActivationUnit
from cdp_torchrec.interest.pooling import PooledHistory
from cdp_torchrec.serving import compile
from cdp_torchrec.serving.compile import compile_ranker
from tests.largest_file import largest_file
from tests.whole_matrix import only_whole

# The chain is unrolled: 100 steps take minutes to compile, five times as long as 20.
CHAINS = [*product(["ddim", "dpmpp_2m"], [1, 2, 4, 8, 20, 100])]


class _Denoised(nn.Module):
    def __init__(self, interest: CdpInterest) -> None:
        super().__init__()
        self.interest = interest

    def forward(self, x_0: Tensor, condition: Tensor, key: Tensor) -> Tensor:
        pooled = PooledHistory(latent=x_0, mean=x_0, count=torch.ones_like(x_0[:, 0]))
        return self.interest.denoised(pooled, condition, key)


@only_whole  # a chain is in the artifact of tests/serving
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("sampler", "steps"), CHAINS)
@pytest.mark.skipif(sys.platform != "linux", reason="needs a C++ compiler")
def test_the_compiled_chain_is_the_eager_one(sampler: str, steps: int, tmp_path: Path) -> None:
    config = {"sampler": sampler, "num_inference_steps": steps}
    check_compiled(config, width=8, package=tmp_path / "chain.pt2")


@only_whole
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="needs a C++ compiler")
def test_compiled_noise_of_a_wide_start_is_the_eager_one(tmp_path: Path) -> None:
    """Where the compiler may assume that integers do not overflow, it draws others from 64 on."""
    config = {"start": "noised", "num_inference_steps": 1}
    check_compiled(config, width=64, package=tmp_path / "noised.pt2")


def check_compiled(settings: Mapping[str, Any], *, width: int, package: Path) -> None:
    torch.manual_seed(0)
    config = CdpConfig.model_validate(
        {
            "kind": "cdp",
            "prediction_type": "x0",
            "denoiser": DenoiserConfig(condition_join="adaln_zero", num_hidden_layers=1),
            **settings,
        }
    )
    dims = InterestDims(user=4, query=4, item=width, item_attributes=8, context=4, scene=4)
    interest = build_interest(config, dims)
    assert isinstance(interest, CdpInterest)
    module = _Denoised(interest.eval())
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2 * math.sqrt(8 / width))

    def inputs(count: int) -> tuple[Tensor, Tensor, Tensor]:
        return torch.randn(count, width), torch.randn(count, width), torch.arange(count)

    places = {0: torch.export.Dim("places", min=2)}
    compile_ranker(module, inputs(16), dynamic_shapes=(places, places, places), package=package)
    other = inputs(37)
    compiled = aoti_load_package(str(package))
    with torch.no_grad():
        torch.testing.assert_close(compiled(*other), module(*other), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("where", ["of the package", "of the compiler"])
def test_a_full_disk_is_named(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(program: object, *, package_path: io.BytesIO, inductor_configs: object) -> None:
        if where == "of the compiler":
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise InductorError(full, None)
        package_path.write(bytes(8192))

    monkeypatch.setattr(compile, "aoti_compile_and_package", write)
    package = tmp_path / "model.pt2"
    named = package if where == "of the package" else Path(cache_dir())
    with largest_file(4096), pytest.raises(OSError, match=f"'{re.escape(str(named))}'"):
        compile_ranker(nn.Linear(2, 2), (torch.zeros(3, 2),), dynamic_shapes=None, package=package)


@pytest.mark.slow
def test_a_product_to_which_a_matrix_is_added_is_compiled_right(tmp_path: Path) -> None:
    """Fails where it goes to a generated kernel. DIN's unit over a short history has such a one."""

    def inputs(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(count, 8, 16), torch.randn(count, 10, 27)

    unit, package = ActivationUnit(ActivationUnitConfig(), dim=16, own_dim=10), tmp_path / "din.pt2"
    rows = {0: torch.export.Dim("rows", min=2)}
    compile_ranker(unit, inputs(5), dynamic_shapes=(rows, rows), package=package)
    other, compiled = inputs(12), aoti_load_package(str(package))
    with torch.no_grad():
        torch.testing.assert_close(compiled(*other), unit(*other), atol=1e-5, rtol=1e-5)
