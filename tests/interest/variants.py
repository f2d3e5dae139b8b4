"""Interest modules as the project ships them, with their ablations and other settings."""

from torch import Tensor

from cdp_torchrec.interest import InterestModule, InterestOutput
from tests.paths import CONFIGS

Variant = tuple[str, ...]
"""Layers and overrides of a configuration."""

PRESETS = sorted(path.stem for path in (CONFIGS / "interest").glob("*.toml"))
WITH_HISTORY: list[Variant] = [
    (f"interest/{preset}",) for preset in PRESETS if preset not in ("none", "counts")
]
ATTENTIVE = [
    f"interest/{preset}"
    for preset in ("din", "sim_hard", "sim_soft", "eta", "twin", "twin_v2", "qin")
]
CDP_FAMILY = [f"interest/{name}" for name in ("condition_mlp", "cdp_paper", "cdp_timestep", "cdp")]
ABLATIONS = ["no_condition", "no_collaborative", "no_context_scene", "no_moe"]
PAPER_UNIT = ("normalise=none", "activation=prelu", "score_features=[]", "embedding_norm=none")
VARIANTS: list[Variant] = [
    *WITH_HISTORY,
    *[(preset, f"ablation/{ablation}") for preset in CDP_FAMILY for ablation in ABLATIONS],
    ("interest/cdp_paper", "ablation/x0_onestep"),
    ("interest/cdp_timestep", "ablation/x0_onestep"),
    ("interest/cdp_paper", "ablation/unrolled"),
    ("interest/cdp_paper", "ablation/same_emission"),
    ("interest/cdp_paper", "ablation/request_noise"),
    ("interest/cdp_paper", "ablation/mean_noise", "num_inference_steps=2"),
    ("interest/cdp_timestep", "denoiser.condition_join=film", "condition.fusion=concat_mlp"),
    ("interest/cdp_timestep", "sampler=dpmpp_2m", "prediction_type=v", "latent_norm=l2"),
    ("interest/cdp_timestep", "schedule.beta_schedule=cosine", "start_timestep=60"),
    ("interest/cdp", "num_inference_steps=3", "recon_detach=true"),
    ("interest/cdp", "ablation/no_completion"),
    ("interest/cdp", "ablation/no_gain"),
    ("interest/condition_mlp", "condition.gain_dim=8"),
    ("interest/cdp", "condition.user_role=user_and_other_categories"),
    ("interest/condition_mlp", "pooling=mean", "condition.user_role=user_and_other_categories"),
    ("interest/din", *[f"attention.{setting}" for setting in PAPER_UNIT]),
    ("interest/din", "attention.activation=sigmoid", "attention.layer_sizes=[8,4]"),
    ("interest/sim_hard", "num_kept=5", *[f"short.{setting}" for setting in PAPER_UNIT]),
    ("interest/sim_soft", "num_kept=5"),
    ("interest/eta", "num_kept=5"),
    ("interest/ads", "num_queries=1", "max_domains=2"),
    ("interest/twin", "num_kept=5"),
    ("interest/twin", "num_kept=5", "kept_by=each_head"),
    ("interest/twin_v2", "num_kept=5"),
    ("interest/qin", "num_query_kept=9", "num_kept=5"),
    ("interest/dien", "augru=official"),
    ("interest/sasrec", "num_heads=2", "next_item_loss_weight=0.1"),
    ("interest/cadirec", "mask_rate=0.7", "denoise_loss_weight=0.1"),
    ("interest/hstu", "num_heads=2", "variant=research"),
    ("interest/cddrec", "denoiser_sees=condition_and_state", "schedule.num_train_timesteps=3"),
    ("interest/cddrec", "num_layers=2", "max_length=9", "cross_view_loss_weight=0.0"),
    ("interest/diffumin", "num_kept=3", "short_length=2", "recon_detach=true"),
    ("interest/diffumin", "contrastive_loss_weight=0.0", "num_layers=1", "start=clean_scaled"),
    ("interest/longer", "group_size=3", "num_queries=2", "num_layers=3", "num_cls_tokens=0"),
    ("interest/marm", "max_length=4", "num_layers=3"),
    ("interest/mtgr", "num_heads=2", "num_layers=3", "realtime_hours=100"),
    ("interest/ddrm", "train_path=chain"),
    ("interest/ddrm", "history_filter=category", "start=noised"),
    ("interest/ddrm_ideal", "train_path=one_step"),
    ("interest/ddrm_ideal", "history_filter=category"),
    ("interest/diffrec", "history_filter=category", "loss_weighting=elbo"),
    ("interest/diff4rec", "max_augmented=2", "augmented_share=1.0"),
    ("interest/ldiffrec", "history_filter=category", "interaction_weight=recency"),
]


def segments(module: InterestModule) -> int:
    """Segments of the pooled history that a module reads; 1 if it reads none."""
    mean = getattr(getattr(module, "pooling", None), "mean", None)
    weights = getattr(mean, "log_weights", None)
    return 1 if weights is None else len(weights)


def auxiliary(output: InterestOutput) -> dict[str, Tensor]:
    """What training adds to the click loss, [B] each: losses, and logits of click models."""
    return {**output.losses, **output.click_logits}
