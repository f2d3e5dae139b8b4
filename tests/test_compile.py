"""A compiled reverse process is the eager one."""

import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import aoti_load_package

from cdp_torchrec.diffusion.config import DenoiserConfig
from cdp_torchrec.interest import CdpConfig, CdpInterest, InterestDims
from cdp_torchrec.serving.compile import compile_ranker
from tests.whole_matrix import WHOLE_MATRIX

DIMS = InterestDims(user=4, query=4, item=8, item_attributes=8, context=4, scene=4)
# The chain is unrolled: 100 steps take minutes to compile, five times as long as 20.
CHAINS = [*product(["ddim", "dpmpp_2m"], [1, 2, 4, 8, 20, 100])]
if not WHOLE_MATRIX:
    CHAINS = [*product(["ddim"], [1, 8]), *product(["dpmpp_2m"], [2, 4, 20])]


class _Denoised(nn.Module):
    def __init__(self, interest: CdpInterest) -> None:
        super().__init__()
        self.interest = interest

    def forward(self, x_0: Tensor, condition: Tensor, key: Tensor) -> Tensor:
        return self.interest.denoised(x_0, condition, key)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("sampler", "steps"), CHAINS)
@pytest.mark.skipif(sys.platform != "linux", reason="needs a C++ compiler")
def test_the_compiled_chain_is_the_eager_one(sampler: str, steps: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = CdpConfig.model_validate(
        {
            "kind": "cdp",
            "prediction_type": "x0",
            "sampler": sampler,
            "num_inference_steps": steps,
            "denoiser": DenoiserConfig(condition_join="adaln_zero", num_hidden_layers=1),
        }
    )
    module = _Denoised(CdpInterest(config, DIMS).eval())
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    example = (torch.randn(16, 8), torch.randn(16, 8), torch.arange(16))
    places = {0: torch.export.Dim("places", min=2)}
    package = compile_ranker(
        module, example, dynamic_shapes=(places, places, places), package=tmp_path / "chain.pt2"
    )
    other = (torch.randn(37, 8), torch.randn(37, 8), torch.arange(37))
    compiled = aoti_load_package(str(package))
    with torch.no_grad():
        torch.testing.assert_close(compiled(*other), module(*other), atol=1e-5, rtol=1e-5)
