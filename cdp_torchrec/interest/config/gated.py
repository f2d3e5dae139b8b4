"""Settings of CDP and of the floors beside it: none, pooled and condition_mlp.

Defaults are the paper's (arXiv 2509.19876), as far as it states them; every reading of ours is a
setting (a1 .. a18, listed in interest/README.md, number the ambiguities).
"""

# D embedding dim, K recency segments, T diffusion steps

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from cdp_torchrec.config import Config, not_with, only_if
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.diffusion.config import (
    NUM_EVIDENCE_LEVELS,
    DenoiserConfig,
    NoiseScheduleConfig,
    PredictionType,
    SamplerType,
)
from cdp_torchrec.interest.config.base import AttentionConfig, Emitted, InterestConfigBase

Expert = Literal["collaborative", "context", "scene"]
Interaction = Literal["hadamard", "bilinear", "hadamard_difference", "none"]
LatentNorm = Literal["none", "layernorm", "l2"]


class NoneConfig(InterestConfigBase):
    """The tower sees no history."""

    kind: Literal["none"]
    """Selects the module."""


class GatedHistoryConfig(InterestConfigBase):
    """Settings of every module that works on the category-gated history."""

    pooling: Literal["mean", "attention"] = "mean"
    """How the gated behaviours become z_0 (ambiguity a17). Paper: "mean", eq. 3. "attention": of
    the target item, over behaviours with category, action type and age."""
    attention: Annotated[AttentionConfig, only_if(pooling="attention")] = AttentionConfig()
    """Sizes of the attention."""

    recency_segments: Annotated[tuple[PositiveInt, ...], only_if(pooling="mean")] = ()
    """Sizes of the most recent segments of the gated history; a last segment holds all older
    behaviours. [1, 4, 16] makes K = 4; [] makes K = 1, the paper's plain mean. With K > 1 each
    segment has a learned positive weight in the mean, 1 at the start (ambiguity a17)."""
    latent_norm: LatentNorm = "none"
    """Scale of z_0 (ambiguity a10). The paper is silent. "none" keeps the tiny scale of embeddings,
    which noise of variance 0.5 erases; "layernorm" and "l2" give every latent unit variance."""
    emit: Emitted[Literal["interest", "interest_item", "pooled"]] = ("interest",)
    """What the tower receives (ambiguity a18), in this order. Paper: the interest alone.
    "interest": the module's vector, [D]. "interest_item": its Hadamard product with the target
    item, [D]. "pooled": z_0, [D]."""

    @property
    def history(self) -> HistoryLookup:
        """The gated history: pooled by recency, or as a sequence."""
        if self.pooling == "attention":
            return HistoryLookup(gated=True)
        return HistoryLookup(pool_segments=self.recency_segments)

    @property
    def num_segments(self) -> int:
        """K, the number of segments of the gated history."""
        return len(self.recency_segments) + 1


class PooledConfig(GatedHistoryConfig):
    """Paper eqs. 2-3 only."""

    kind: Literal["pooled"]
    """Selects the module."""


class ConditionConfig(Config):
    """Experts, their interactions, and how they are fused."""

    experts: tuple[Expert, ...] = ("collaborative", "context", "scene")
    """Experts in use. Paper: all three; the ablations of Table 2 leave some out, and the gate is
    normalised over those left. [] is "no condition". An expert whose roles the dataset lacks is
    left out as well."""
    interaction: Annotated[Interaction, only_if(experts="collaborative")] = "hadamard"
    """Pairwise terms of eq. 5 beside the roles themselves (ambiguity a1). Paper: q.u, u.i and q.i.
    "bilinear" is (W a).b with a matrix per pair; "hadamard_difference" adds a - b to each pair."""
    user_role: Annotated[
        Literal["user", "user_and_other_categories"], only_if(experts="collaborative")
    ] = "user"
    """What stands for the user in the collaborative expert. Paper: "user", the user's features.
    "user_and_other_categories": also the normalised mean of the behaviours in all categories but
    the target's. Tastes in different categories have much in common, so what is thin here can be
    completed from there; the behaviours here are what the denoiser has to restore. Needs pooling =
    "mean"."""
    fusion: Annotated[Literal["moe", "mean", "sum", "concat_mlp"], not_with(experts=())] = "moe"
    """How experts become one condition (ambiguity a2). Paper: "moe", the gated sum of eq. 8. Its
    "no MoE" ablation is not specified: "mean" here; "concat_mlp" is a 2-layer MLP on them all."""
    gate: Annotated[Literal["softmax", "sigmoid"], only_if(fusion="moe"), not_with(experts=())] = (
        "softmax"
    )
    """Gate of the experts (eq. 7). Paper: softmax. "sigmoid" opens every expert independently."""

    gain_dim: Annotated[NonNegativeInt, not_with(experts=())] = 0
    """Hidden width of a direct gain on the interest beside the fusion, z * (1 + MLP(query, context,
    scene)), 1 at the start; 0: no gain. Ours: what query, hour and source make of a taste is a
    product of weights, which a mixture of experts cannot express. An input belongs to it only with
    its expert (the query with "collaborative")."""

    item_gradient: Annotated[Literal["flow", "stop"], only_if(experts="collaborative")] = "flow"
    """Whether the condition trains the target item's embedding. Paper: end to end, "flow". "stop"
    still reads it; on logs whose items are mostly new, "flow" learns training items by heart."""

    @property
    def reads_whole_history(self) -> bool:
        """Whether an expert in use looks at behaviours of all categories."""
        return self.user_role == "user_and_other_categories" and "collaborative" in self.experts

    @field_validator("experts")
    @classmethod
    def _experts_once(cls, experts: tuple[Expert, ...]) -> tuple[Expert, ...]:
        if len(set(experts)) < len(experts):
            raise ValueError("each expert can be named once only")
        return experts


class ConditionMlpConfig(GatedHistoryConfig):
    """Paper eqs. 2-3 and 5-8, and the denoiser's network called once."""

    kind: Literal["condition_mlp"]
    """Selects the module."""
    condition: ConditionConfig = ConditionConfig()
    """Experts and their fusion, as in cdp."""
    network: DenoiserConfig = DenoiserConfig()
    """Size of the network, as in cdp."""

    @model_validator(mode="after")
    def _check(self) -> "ConditionMlpConfig":
        _check_user_role(self.condition, self.pooling)
        return self

    @property
    def history(self) -> HistoryLookup:
        """The gated history, and the whole one, if the condition reads it."""
        return replace(super().history, whole=self.condition.reads_whole_history)


class CdpConfig(GatedHistoryConfig):
    """Paper eqs. 3-13."""

    kind: Literal["cdp"]
    """Selects the module."""
    schedule: Annotated[NoiseScheduleConfig, only_if(noise_level="timestep")] = (
        NoiseScheduleConfig()
    )
    """Forward process (eq. 4, a9)."""
    condition: ConditionConfig = ConditionConfig()
    """Experts and their fusion (eqs. 5-8, a1, a2)."""
    denoiser: DenoiserConfig = DenoiserConfig()
    """Network of the denoiser (eqs. 9-10, a3, a4)."""
    prediction_type: PredictionType = "epsilon"
    """What the denoiser predicts. Paper: the noise, "epsilon" (eq. 10). "x0": the clean latent."""
    start: Literal["noised", "clean_scaled", "clean", "gaussian"] = "noised"
    """State where sampling starts (a7, a8). "noised": z_0 after the forward process, as Figure 1c
    draws. "clean_scaled": the same without the noise. "clean": z_0
    itself. "gaussian": pure noise, off-distribution here because x_T keeps 69 % of the signal."""
    noise_of: Literal["impression", "request", "fixed"] = "impression"
    """What the noise of a "noised" or "gaussian" start belongs to (a8); Figure 1c does not say.
    "impression": candidates of a request that share z_0 still start from different states, so their
    order is partly noise. "request": they start from the same state, one for each request and
    category. "fixed": one noise for all."""
    num_noise_draws: PositiveInt = 1
    """Chains whose ends are averaged, each from noise of its own (a8): the mean over the noise
    instead of one draw, at as many times the cost."""
    start_timestep: PositiveInt | None = None
    """Noise level of the start state; T if not given. Training draws its timesteps up to here."""
    sampler: Annotated[
        SamplerType, only_if(train_path=("chain", "x0_onestep")), not_with(num_inference_steps=0)
    ] = "ddim"
    """Deterministic solver of the reverse process (a6)."""
    num_inference_steps: NonNegativeInt = 20
    """K, denoiser calls per impression in serving (a6). Paper: 20. 0 needs start = "clean" and
    leaves z_0 as it is."""
    train_path: Literal["chain", "x0_onestep", "unrolled"] = "chain"
    """How training makes the interest (a5). "chain": the chain of serving, with gradients through
    all its steps, and one more call at a random timestep for the noise loss. "x0_onestep": that
    one call serves both; serving still runs the chain. "unrolled": the literal reading R2 of eqs.
    9-10, K recurrences without a sampler between them, in training and in serving."""
    corruption: Literal["gaussian", "subsample"] = "gaussian"
    """What training spoils for the denoiser to restore. Paper: "gaussian", z_0 with noise (eq. 4):
    the target is the observation itself, whatever contaminates it. "subsample": z of a random part,
    m of the n gated behaviours; the target is z of all of them (as in Noise2Noise, arXiv
    1803.04189), so rich histories teach how to complete poor ones. Its loss counts where 0 < m < n,
    and trains neither latent; needs noise_level = "evidence"."""
    noise_level: Literal["timestep", "evidence"] = "timestep"
    """What the denoiser knows of the noise in its state. Paper: the "timestep" (eq. 9). "evidence":
    the number of behaviours that the state is a mean of (n; m of a part), as 2 log2(n + 1),
    rounded, because a mean of n observes the taste with a variance of 1 / n. The chain starts at
    the evidence that an impression has, and its K steps end at that of 180 behaviours; schedule,
    sampler and timesteps have no part in it."""
    recon_detach: Annotated[bool, not_with(noise_loss_weight=0.0)] = False
    """Noise loss trains the denoiser only, not the embeddings, the pooling or the experts (a11).
    The paper is silent; without it the noise loss is minimised by collapsing z_0. With corruption =
    "subsample" latents are detached anyhow, and this says whether the experts are."""
    noise_loss_weight: NonNegativeFloat = 1.0
    """Lambda, weight of the noise loss beside the BCE (eqs. 11-13, a12); the loss is a mean over
    dimensions. Paper: no factor shown. At 0 the noise loss is not computed."""
    loss_weighting: Annotated[
        Literal["uniform", "min_snr"],
        only_if(train_path=("chain", "x0_onestep")),
        not_with(noise_loss_weight=0.0),
    ] = "uniform"
    """Weight of timesteps in the noise loss. Paper: uniform. "min_snr": arXiv 2303.09556."""
    min_snr_gamma: Annotated[PositiveFloat, only_if(loss_weighting="min_snr")] = 5.0
    """Ceiling of the signal-to-noise ratio in these weights."""

    @property
    def last_timestep(self) -> int:
        """Noise level where sampling starts."""
        return self.start_timestep or self.schedule.num_train_timesteps

    @property
    def max_inference_steps(self) -> int:
        """Most steps that there are to sample."""
        return NUM_EVIDENCE_LEVELS - 1 if self.noise_level == "evidence" else self.last_timestep

    @property
    def history(self) -> HistoryLookup:
        """The gated history; the whole one, if the condition reads it; a part, if that corrupts."""
        return replace(
            super().history,
            part=self.corruption == "subsample",
            whole=self.condition.reads_whole_history,
        )

    @model_validator(mode="after")
    def _check_evidence(self) -> "CdpConfig":
        _check_user_role(self.condition, self.pooling)
        if self.corruption == "subsample":
            if self.noise_level != "evidence":
                raise ValueError(
                    "corruption = 'subsample' needs noise_level = 'evidence', found "
                    f"'{self.noise_level}': the number of behaviours is its noise level"
                )
            if self.pooling != "mean":
                raise ValueError(
                    f"corruption = 'subsample' needs pooling = 'mean', found '{self.pooling}': the "
                    "mean of a part is no observation of another pooling"
                )
            if self.noise_loss_weight == 0.0:
                raise ValueError(
                    "corruption = 'subsample' needs noise_loss_weight > 0: without that loss "
                    "nothing is learnt from a part"
                )
        if self.noise_level == "evidence":
            if self.corruption == "gaussian" and self.noise_loss_weight > 0.0:
                raise ValueError(
                    "noise_level = 'evidence' needs corruption = 'subsample', or noise_loss_weight "
                    "= 0: the denoiser is not told the level of Gaussian noise"
                )
            needed = {
                "start": "clean",
                "start_timestep": None,
                "prediction_type": "x0",
                "sampler": "ddim",
                "train_path": "chain",
                "loss_weighting": "uniform",
            }
            wrong = [
                f"{key} = {getattr(self, key)!r}"
                for key in needed
                if getattr(self, key) != needed[key]
            ]
            if wrong:
                raise ValueError(
                    "noise_level = 'evidence' starts at the mean itself and predicts the clean "
                    f"latent: it needs {', '.join(f'{k} = {v!r}' for k, v in needed.items())}; "
                    f"found {', '.join(wrong)}"
                )
            if not 1 <= self.num_inference_steps <= self.max_inference_steps:
                raise ValueError(
                    f"num_inference_steps = {self.num_inference_steps}: noise_level = 'evidence' "
                    f"has 1 to {self.max_inference_steps} steps, one for each level at most"
                )
        return self

    @model_validator(mode="after")
    def _check(self) -> "CdpConfig":
        if self.last_timestep > self.schedule.num_train_timesteps:
            raise ValueError(
                f"start_timestep = {self.start_timestep} is above schedule.num_train_timesteps = "
                f"{self.schedule.num_train_timesteps}"
            )
        if self.num_inference_steps > self.last_timestep:
            raise ValueError(
                f"num_inference_steps = {self.num_inference_steps} is more than the "
                f"{self.last_timestep} timesteps that there are to sample"
            )
        if self.num_inference_steps == 0 and self.start != "clean":
            raise ValueError(
                f"num_inference_steps = 0 needs start = 'clean', found '{self.start}': "
                "nothing would remove the noise or the scale"
            )
        noise = (self.noise_of, self.num_noise_draws)
        if noise != ("impression", 1) and self.start not in ("noised", "gaussian"):
            raise ValueError(
                f"noise_of = '{self.noise_of}' and num_noise_draws = {self.num_noise_draws} need "
                f"noise at the start: start = 'noised' or 'gaussian', found '{self.start}'"
            )
        if self.num_noise_draws > 1 and self.train_path == "unrolled":
            raise ValueError(
                f"num_noise_draws = {self.num_noise_draws}: train_path = 'unrolled' predicts the "
                "noise of one start state"
            )
        if self.train_path != "chain" and self.recon_detach:
            raise ValueError(
                f"recon_detach needs train_path = 'chain', found '{self.train_path}', "
                "where one denoiser call serves both losses"
            )
        if self.train_path == "unrolled":
            found = (self.start, self.prediction_type, self.denoiser.condition_join)
            if found != ("noised", "epsilon", "add") or self.num_inference_steps == 0:
                raise ValueError(
                    "train_path = 'unrolled' is the literal reading of eqs. 9-10: it needs "
                    "start = 'noised', prediction_type = 'epsilon', denoiser.condition_join = 'add'"
                    f" and num_inference_steps >= 1, found {found} and {self.num_inference_steps}"
                )
        return self


def _check_user_role(condition: ConditionConfig, pooling: str) -> None:
    if condition.user_role != "user" and pooling != "mean":
        raise ValueError(
            f"condition.user_role = '{condition.user_role}' needs pooling = 'mean', found "
            f"'{pooling}': the other categories are the whole sum without the gated one"
        )


GatedConfig = NoneConfig | PooledConfig | ConditionMlpConfig | CdpConfig
