"""CDP with a clean target: the denoiser knows how many behaviours its state was made of.

What training spoils is the history itself: z of a random part of the behaviours is the contaminated
observation, z of all of them what is to be restored (sub-sampling, as in Noise2Noise, arXiv
1803.04189). Ours.
"""

# B impressions, D embedding dim, M modulation width

from torch import Tensor

from cdp_torchrec.diffusion.evidence import EvidenceDenoiser
from cdp_torchrec.interest.base import InterestInput
from cdp_torchrec.interest.cdp import CdpInterest, NoiseLoss
from cdp_torchrec.interest.pooling import PooledHistory


class EvidenceCdp(CdpInterest[EvidenceDenoiser]):
    """The chain leads from the evidence that an impression has to that of many behaviours."""

    def _make_denoiser(self, condition_dim: int) -> EvidenceDenoiser:
        return EvidenceDenoiser(self.config.denoiser, dim=self.dim, condition_dim=condition_dim)

    def _sample(self, pooled: PooledHistory, modulation: Tensor, key: Tensor) -> Tensor:
        return self.denoiser.denoise(
            pooled.latent, pooled.count, modulation, num_steps=self.config.num_inference_steps
        )

    def _noise_loss(
        self, pooled: PooledHistory, modulation: Tensor, inputs: InterestInput
    ) -> NoiseLoss:
        """How well z of all behaviours is predicted from z of a part of them.

        The latents are detached: the loss would be smallest if all behaviours were the same.
        """
        part, count = self.pooling.of_part(inputs)
        x, whole = part.detach(), pooled.latent.detach()
        useful = ((count > 0) & (count < pooled.count)).to(x.dtype)
        error = self.denoiser.predict(x, count, modulation) - whole
        identity = (x - whole).square().mean(dim=1) * useful if self.reports else None
        return NoiseLoss(error.square().mean(dim=1) * useful, identity)
