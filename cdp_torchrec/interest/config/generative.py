"""Settings of the other diffusion recommenders: DDRM, DiffRec and Diff4Rec."""

# T diffusion steps, V buckets, K clusters, Z latent width of all clusters

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cdp_torchrec.data.history_lookup import HistoryLookup
from cdp_torchrec.diffusion.config import ConcatDenoiserConfig, NoiseScheduleConfig
from cdp_torchrec.interest.config.base import InterestVectorConfig
from cdp_torchrec.interest.config.sequential import SasrecEncoderConfig

_MAX_BUCKETS = 4096


class DdrmConfig(InterestVectorConfig):
    """Settings of DDRM; defaults are those of its script for Yelp, but for the network's size."""

    kind: Literal["ddrm"]
    """Selects the module."""
    reading: Literal["symmetric", "ideal_item"] = "symmetric"
    """What is denoised. "symmetric": user and target item; the tower also receives the denoised
    item, [D]. "ideal_item": the mean history into an ideal item; the tower also receives its inner
    product with the target item (DDRM's score) and their cosine, [2]."""
    history_filter: Literal["none", "category"] = "none"
    """Which behaviours are averaged. DDRM: all, "none". "category": those in the target item's."""
    latent_norm: Literal["none", "layernorm"] = "none"
    """Scale of the vectors that are denoised. DDRM: "none", of a pre-trained backbone. Embeddings
    that start small would vanish in the noise: "layernorm" gives them unit variance."""
    schedule: NoiseScheduleConfig = NoiseScheduleConfig(
        num_train_timesteps=30,
        beta_schedule="linear_var",
        beta_start=1e-4,
        beta_end=1e-2,
        noise_scale=1e-4,
        first_beta=1e-5,
    )
    """Forward process. Serving takes all its T steps; DDRM takes 1.25 T, where its code uses the
    last step's coefficients for those beyond T."""
    denoiser: ConcatDenoiserConfig = ConcatDenoiserConfig(activation="relu")
    """Network of each denoiser; user and item have weights of their own."""
    start: Literal["clean", "noised"] = "noised"
    """State where the chain starts. DDRM: after T steps of noise, here fixed per impression.
    "clean": the vector itself."""
    train_path: Literal["one_step", "chain"] = "one_step"
    """What the click loss trains. "one_step": the prediction from one random timestep, as DDRM
    does; serving still runs the chain. "chain": the chain of serving, with a call of its own for
    the denoising loss."""
    denoise_loss_weight: NonNegativeFloat = 0.1
    """Weight of the squared error in the denoised vectors, a mean over dimensions. DDRM mixes
    (1 - alpha) of its ranking loss with alpha of this; alpha = 0.1, or 0.3 on Yelp."""

    @property
    def history(self) -> HistoryLookup:
        """All behaviours, or those in the target item's category, for their mean."""
        if self.history_filter == "category":
            return HistoryLookup(pool_segments=())
        return HistoryLookup(recent=True)


class ItemBucketsConfig(InterestVectorConfig):
    """How items are hashed into the buckets that diffusion knows."""

    num_clusters: PositiveInt = 16
    """K: category code modulo K. L-DiffRec clusters items by k-means of embeddings, 2 to 4."""
    buckets_per_cluster: PositiveInt = 64
    """V / K: item code modulo V / K, within a cluster. DiffRec: a bucket for each item."""

    @model_validator(mode="after")
    def _check_buckets(self) -> "ItemBucketsConfig":
        if self.num_clusters * self.buckets_per_cluster > _MAX_BUCKETS:
            raise ValueError(
                f"num_clusters * buckets_per_cluster = {self.num_clusters} * "
                f"{self.buckets_per_cluster} is above {_MAX_BUCKETS}, the widest state"
            )
        return self


class DiffRecConfig(ItemBucketsConfig):
    """Settings of DiffRec; defaults are those of its scripts, but for the sizes."""

    kind: Literal["diffrec"]
    """Selects the module."""
    space: Literal["vocabulary", "latent"] = "vocabulary"
    """Where diffusion happens. DiffRec: "vocabulary", on the interactions themselves. L-DiffRec:
    "latent", on their codes."""
    interaction_weight: Literal["binary", "recency"] = "binary"
    """What an interaction counts. DiffRec: 1, "binary". T-DiffRec: "recency", evenly from
    `oldest_weight` to 1 in the order of time. An item met twice counts as its last time."""
    oldest_weight: NonNegativeFloat = 0.1
    """w_min of "recency". T-DiffRec: 0.1, or 0.5 on one of its datasets."""
    history_filter: Literal["none", "category"] = "none"
    """Which interactions enter. DiffRec: all, "none". "category": those in the target item's."""
    latent_per_cluster: PositiveInt = 8
    """Z / K, of "latent" only. L-DiffRec: 300 in all, shared out by the size of clusters."""
    schedule: NoiseScheduleConfig = NoiseScheduleConfig(
        num_train_timesteps=5,
        beta_schedule="linear_var",
        beta_start=1e-4,
        beta_end=0.02,
        noise_scale=0.1,
        first_beta=1e-5,
    )
    """Forward process. DiffRec: T of 5 to 100."""
    denoiser: ConcatDenoiserConfig = ConcatDenoiserConfig()
    """Network of the denoiser."""
    loss_weighting: Literal["elbo", "uniform"] = "elbo"
    """Weight of timesteps in the denoising loss. DiffRec: "elbo", SNR(t - 1) - SNR(t), which are
    thousands where noise is small."""
    denoise_loss_weight: NonNegativeFloat = 1.0
    """Weight of the denoising loss. DiffRec: its only loss. L-DiffRec: falls from 0.03 to 0.005."""
    reconstruction_loss_weight: NonNegativeFloat = 1.0
    """Weight of the multinomial loss of decoded interactions, of "latent" only; L-DiffRec: 1, of
    their sum, here of their mean, so that long histories do not rule."""
    kl_loss_weight: NonNegativeFloat = 0.3
    """Weight of the divergence of codes from a standard normal, of "latent" only. L-DiffRec:
    rises from 0 to 0.3."""

    @model_validator(mode="after")
    def _check_weight(self) -> "DiffRecConfig":
        if self.oldest_weight > 1.0:
            raise ValueError(f"oldest_weight = {self.oldest_weight} is above 1, that of the newest")
        return self

    @property
    def history(self) -> HistoryLookup:
        """Behaviours of the request, or those in the target item's category."""
        by_category = self.history_filter == "category"
        return HistoryLookup(gated=by_category, recent=not by_category)


class Diff4RecConfig(ItemBucketsConfig, SasrecEncoderConfig):
    """Encoder, diffusion and curriculum; the paper states no sizes that we know of."""

    kind: Literal["diff4rec"]
    """Selects the module."""
    latent_per_cluster: PositiveInt = 8
    """Width of the codes of a cluster of items."""
    schedule: NoiseScheduleConfig = NoiseScheduleConfig(
        num_train_timesteps=5,
        beta_schedule="linear_var",
        beta_start=1e-4,
        beta_end=0.02,
        noise_scale=0.1,
        first_beta=1e-5,
    )
    """Forward process between encoder and decoder, that of L-DiffRec."""
    denoiser: ConcatDenoiserConfig = ConcatDenoiserConfig()
    """Network of the denoiser."""
    sparse_below: PositiveInt = 20
    """Histories with fewer behaviours are sparse: they are augmented."""
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

    @property
    def history(self) -> HistoryLookup:
        """The most recent behaviours of each request, and in training those of a stranger."""
        return HistoryLookup(recent=True, recent_length=self.max_length, stranger=True)


GenerativeConfig = DdrmConfig | DiffRecConfig | Diff4RecConfig
