"""TorchRec's low-rank cross layers without a wide tensor for every intermediate result."""

# B impressions, N features

from torch import Tensor
from torch.nn import functional
from torchrec.modules.crossnet import LowRankCrossNet


class CrossNet(LowRankCrossNet):
    """DCN-V2's x_0 * (W V x_l + b) + x_l (arXiv 2008.13535, eq. 2), the same bit for bit.

    Sums go into the memory of their first term, which no gradient needs: [B, N] is the widest
    tensor of the tower, and on a CPU writing it anew costs as much as computing it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, N] -> [B, N]."""
        x_0 = x_l = input
        layers = zip(self.V_kernels, self.W_kernels, self.bias, strict=True)
        for v_kernel, w_kernel, bias in layers:
            x_l_w = functional.linear(functional.linear(x_l, v_kernel), w_kernel)
            # Under autocast the sum has more digits than the product has.
            factor = x_l_w.add_(bias) if x_l_w.dtype == bias.dtype else x_l_w + bias
            x_l = (x_0 * factor).add_(x_l)
        return x_l
