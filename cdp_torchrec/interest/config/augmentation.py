"""Settings of the module whose histories are augmented: Diff4Rec."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.diffusion.config import ConcatDenoiserConfig, NoiseScheduleConfig
from cdp_torchrec.interest.config.generative import DIFFREC_SCHEDULE, ItemBucketsConfig
from cdp_torchrec.interest.config.sequential import SasrecEncoderConfig


class Diff4RecConfig(ItemBucketsConfig, SasrecEncoderConfig):
    """Encoder, diffusion and curriculum; the paper states no sizes that we know of."""

    kind: Literal["diff4rec"]
    """Selects the module."""
    latent_per_cluster: PositiveInt = 8
    """Width of the codes of a cluster of items."""
    schedule: NoiseScheduleConfig = DIFFREC_SCHEDULE
    """Forward process between encoder and decoder, that of L-DiffRec."""
    denoiser: ConcatDenoiserConfig = ConcatDenoiserConfig()
    """Network of the denoiser."""
    sparse_below: PositiveInt = 20
    """Histories with fewer behaviours are sparse: they are augmented. At most max_length, which is
    all that is seen of a history."""
    max_augmented: PositiveInt = 5
    """Behaviours that a sparse history gets at the end of the curriculum."""
    augmented_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75
    """Share of the sparse histories that are read augmented; the others as they are in serving."""
    num_stranger_behaviours: PositiveInt = 50
    """Most recent behaviours of another user, of which augmentation takes those that the diffusion
    thinks likeliest. Diff4Rec: of all items."""
    curriculum_start: NonNegativeFloat = 0.5
    """Passes over the training data after which the curriculum begins. Until then the diffusion
    trains alone, Diff4Rec's pre-training."""
    curriculum_end: PositiveFloat = 2.0
    """Passes after which it is at its end, with all augmentations and the full objective."""
    objective_loss_weight: NonNegativeFloat = 0.1
    """Weight, at the end of the curriculum, of the loss whose targets are augmented behaviours."""
    denoise_loss_weight: PositiveFloat = 1.0
    """Weight of the denoising loss. Like the next two it trains the diffusion alone."""
    reconstruction_loss_weight: PositiveFloat = 1.0
    """Weight of the multinomial loss of decoded interactions, a mean over them."""
    kl_loss_weight: PositiveFloat = 0.3
    """Weight of the divergence of codes from a standard normal. L-DiffRec: rises from 0 to 0.3."""

    @model_validator(mode="after")
    def _check_curriculum(self) -> "Diff4RecConfig":
        if self.curriculum_start >= self.curriculum_end:
            raise ValueError(
                f"curriculum_start = {self.curriculum_start} is not below "
                f"curriculum_end = {self.curriculum_end}"
            )
        return self

    @model_validator(mode="after")
    def _check_sparse(self) -> "Diff4RecConfig":
        if self.sparse_below > self.max_length:
            raise ValueError(
                f"sparse_below = {self.sparse_below} is above max_length = {self.max_length}: of a "
                "rich history no more behaviours are seen, so every history would be sparse"
            )
        return self

    @model_validator(mode="after")
    def _check_augmented(self) -> "Diff4RecConfig":
        if self.max_augmented > self.num_stranger_behaviours:
            raise ValueError(
                f"max_augmented = {self.max_augmented} is above num_stranger_behaviours = "
                f"{self.num_stranger_behaviours}, of which they are taken"
            )
        return self

    @property
    def history(self) -> HistoryLookup:
        """The most recent behaviours of each request, and in training those of a stranger."""
        return HistoryLookup(recent=True, recent_length=self.max_length, stranger=True)
