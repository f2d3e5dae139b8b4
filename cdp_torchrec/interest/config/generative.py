"""Settings of the other diffusion recommenders: DDRM, DiffRec, DiffuMIN and CDDRec."""

# T diffusion steps, V buckets, K clusters, Z latent width of all clusters, F width of item and
# category

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cdp_torchrec.config import not_with, only_if
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.diffusion.config import ConcatDenoiserConfig, NoiseScheduleConfig
from cdp_torchrec.interest.config.base import (
    EmbeddingNorm,
    Emitted,
    InterestConfigBase,
    InterestVectorConfig,
)

_MAX_BUCKETS = 4096
DIFFREC_SCHEDULE = NoiseScheduleConfig(
    num_train_timesteps=5,
    beta_schedule="linear_var",
    beta_start=1e-4,
    beta_end=0.02,
    noise_scale=0.1,
    first_beta=1e-5,
)
"""Forward process of DiffRec's scripts."""


class DdrmConfig(InterestVectorConfig):
    """Settings of DDRM; defaults are those of its script for Yelp, but for the network's size."""

    kind: Literal["ddrm"]
    """Selects the module."""
    reading: Literal["symmetric", "ideal_item"] = "symmetric"
    """What is denoised. "symmetric": user and target item; the tower also receives the denoised
    item, [D]. "ideal_item": the mean history into an ideal item; the tower also receives its inner
    product with the target item (DDRM's score) and their cosine, [2]."""
    history_filter: Literal["none", "category"] = "none"
    """Which behaviours are averaged. DDRM: all, "none", of which the last data.history.max_length
    are read. "category": all in the target item's."""
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
        """The recent behaviours, or all in the target item's category, for their mean."""
        if self.history_filter == "category":
            return HistoryLookup(pool_segments=())
        return HistoryLookup(recent=True)

    @property
    def reads_time_of_day(self) -> bool:
        """No: of a behaviour, only its item is read."""
        return False


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
    oldest_weight: Annotated[NonNegativeFloat, only_if(interaction_weight="recency")] = 0.1
    """w_min of the weights. T-DiffRec: 0.1, or 0.5 on one of its datasets."""
    history_filter: Literal["none", "category"] = "none"
    """Which interactions enter. DiffRec: all, "none". "category": those in the target item's. Of
    either, the last data.history.max_length are read."""
    latent_per_cluster: Annotated[PositiveInt, only_if(space="latent")] = 8
    """Z / K. L-DiffRec: 300 in all, shared out by the size of clusters."""
    schedule: NoiseScheduleConfig = DIFFREC_SCHEDULE
    """Forward process. DiffRec: T of 5 to 100."""
    denoiser: ConcatDenoiserConfig = ConcatDenoiserConfig()
    """Network of the denoiser."""
    loss_weighting: Literal["elbo", "uniform"] = "elbo"
    """Weight of timesteps in the denoising loss. DiffRec: "elbo", SNR(t - 1) - SNR(t), which are
    thousands where noise is small."""
    denoise_loss_weight: NonNegativeFloat = 1.0
    """Weight of the denoising loss. DiffRec: its only loss. L-DiffRec: falls from 0.03 to 0.005."""
    reconstruction_loss_weight: Annotated[NonNegativeFloat, only_if(space="latent")] = 1.0
    """Weight of the multinomial loss of decoded interactions. L-DiffRec: 1, of their sum, here of
    their mean, so that long histories do not rule."""
    kl_loss_weight: Annotated[NonNegativeFloat, only_if(space="latent")] = 0.3
    """Weight of the divergence of codes from a standard normal. L-DiffRec: rises from 0 to 0.3."""

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

    @property
    def reads_time_of_day(self) -> bool:
        """No: of a behaviour, only item and category are read."""
        return False


class DiffuminConfig(InterestConfigBase):
    """Settings of DiffuMIN; defaults are those of its public code, where it runs consistently."""

    kind: Literal["diffumin"]
    """Selects the module."""
    num_channels: PositiveInt = 4
    """Orthogonal channels c of a target, not more than the width of item and category. Paper: 4."""
    num_kept: PositiveInt = 100
    """Behaviours that each channel keeps, of those whose best channel it is. Public code: 100 of
    5000; the paper keeps a share p % of them."""
    num_layers: PositiveInt = 2
    """Blocks of the denoiser, and of the short-term encoder. Public code: 2."""
    num_heads: PositiveInt = 2
    """Heads of each block; divides the width of item and category. Public code: 2."""
    hidden_multiple: PositiveInt = 3
    """Width of a block's hidden layer over F. Public code: 3."""
    short_length: PositiveInt = 10
    """Most recent behaviours that the short-term encoder reads. Ours; the paper leaves k open."""
    schedule: NoiseScheduleConfig = NoiseScheduleConfig(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02
    )
    """Forward process; the denoising loss draws from all T steps. Public code: T = 1000, linear."""
    start_timestep: PositiveInt = 10
    """Noise level from which interests are generated. Public code: starts from any level and
    denoises from 10, which is consistent for 10 only."""
    num_inference_steps: PositiveInt = 10
    """Calls of the denoiser from there to the clean interest. Public code: 10."""
    start: Literal["noised", "clean_scaled"] = "noised"
    """What the generation starts from: the interest noised to that level, the same noise whenever
    the impression is scored; or "clean_scaled", without its noise. Paper: noised."""
    denoise_loss_weight: NonNegativeFloat = 0.01
    """Weight of the squared error in x_0, a mean over dimensions and channels. Public code: 0.01.
    """
    recon_detach: Annotated[bool, not_with(denoise_loss_weight=0.0)] = False
    """Whether the denoising loss trains the denoiser only, and not embeddings, for which it is
    smallest if all interests are the same. Public code: false."""
    contrastive_loss_weight: NonNegativeFloat = 0.001
    """Weight of the contrastive loss between interests and generated ones. Public code: 0.001."""
    temperature: Annotated[PositiveFloat, not_with(contrastive_loss_weight=0.0)] = 0.05
    """Divides the cosines in the contrastive loss. Public code: 0.05."""
    emit: Emitted[Literal["interest", "interest_item"]] = ("interest",)
    """What the tower receives, in this order. "interest": interests and generated interests of all
    channels and the short-term one, [(2 c + 1) F], as in the paper. "interest_item": sums of either
    over the channels, and the short-term one, each times the target, both in layer norm, [3 F]."""
    embedding_norm: EmbeddingNorm = "none"
    """Layer norm of item, category and action embeddings on their way in. Paper: none. Fresh
    embeddings are so small that relevance, their product, starts near zero."""

    @model_validator(mode="after")
    def _check(self) -> "DiffuminConfig":
        num_steps = self.schedule.num_train_timesteps
        if self.start_timestep > num_steps:
            raise ValueError(
                f"start_timestep = {self.start_timestep} is above schedule.num_train_timesteps "
                f"= {num_steps}"
            )
        if self.num_inference_steps > self.start_timestep:
            raise ValueError(
                f"num_inference_steps = {self.num_inference_steps} is above start_timestep "
                f"= {self.start_timestep}, the steps that there are"
            )
        return self

    @property
    def searches(self) -> Mapping[str, int]:
        """One, by the relevance to each channel."""
        return {"num_kept": self.num_kept}

    @property
    def history(self) -> HistoryLookup:
        """The whole history, not gated."""
        return HistoryLookup(recent=True, graph_changes_beyond=(self.num_kept,))


class CddrecConfig(InterestVectorConfig):
    """Sizes, steps and losses; defaults are those of CDDRec's code, but for the width."""

    kind: Literal["cddrec"]
    """Selects the module."""
    max_length: PositiveInt = 20
    """Most recent behaviours that are encoded. CDDRec: 20."""
    num_layers: PositiveInt = 1
    """Blocks of the encoder; the decoder is one. CDDRec: 1."""
    num_heads: PositiveInt = 4
    """Heads of encoder and decoder; divides the embedding dim. CDDRec: 4."""
    schedule: NoiseScheduleConfig = NoiseScheduleConfig(
        num_train_timesteps=20, beta_start=1e-4, beta_end=2e-3
    )
    """Forward process. CDDRec: 20 steps, linear, so that the last one keeps 99 % of the signal;
    25 or 30 steps or a beta_end of 0.04 or 0.08 on some datasets."""
    denoiser_sees: Literal["condition", "condition_and_state"] = "condition"
    """What the decoder knows beside the timestep. CDDRec: "condition", it never sees x_t, and one
    call serves. "condition_and_state": x_t too; then serving takes all T steps."""
    reordered_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.6
    """Share of the behaviours that stand in another order in the second view. CDDRec: 0.6."""
    num_stranger_behaviours: PositiveInt = 20
    """Most recent behaviours of the stranger that a contrast tells from. CDDRec: all positions of
    the batch."""
    temperature: PositiveFloat = 0.5
    """Divides the cosines of the contrasts. CDDRec: 0.5."""
    ranking_loss_weight: NonNegativeFloat = 1.0
    """Weight of the binary cross-entropy of next and other item at all steps, in both views.
    CDDRec: 1, its main loss."""
    in_view_loss_weight: NonNegativeFloat = 0.3
    """Weight of the contrast of a sample with the noised next item. CDDRec: 0.3."""
    cross_view_loss_weight: NonNegativeFloat = 0.3
    """Weight of the contrast of a sample with that of the other view. CDDRec: 0.3."""

    @model_validator(mode="after")
    def _check_read(self) -> "CddrecConfig":
        readers = {
            "reordered_share": ("ranking_loss_weight", "cross_view_loss_weight"),
            "num_stranger_behaviours": ("in_view_loss_weight", "cross_view_loss_weight"),
            "temperature": ("in_view_loss_weight", "cross_view_loss_weight"),
        }
        for key, weights in readers.items():
            is_read = any(getattr(self, weight) > 0 for weight in weights)
            if not is_read and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect with {' and '.join(weights)} = 0")
        return self

    @property
    def history(self) -> HistoryLookup:
        """The most recent behaviours of each request, and in training those of a stranger."""
        return HistoryLookup(recent=True, recent_length=self.max_length, stranger=True)


GenerativeConfig = DdrmConfig | DiffRecConfig | DiffuminConfig | CddrecConfig
