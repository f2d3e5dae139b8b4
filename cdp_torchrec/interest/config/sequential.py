"""Settings of the modules that read a history in its order: DIEN, SASRec, CaDiRec and HSTU."""

# D embedding dim

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from cdp_torchrec.config import not_with
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.diffusion.config import NoiseScheduleConfig
from cdp_torchrec.interest.config.base import InterestVectorConfig

Augru = Literal["paper", "official"]
Variant = Literal["research", "ranking"]


class DienConfig(InterestVectorConfig):
    """Sizes, the form of the AUGRU and the auxiliary loss."""

    kind: Literal["dien"]
    """Selects the module."""
    max_length: PositiveInt = 50
    """Most recent behaviours that are read. Authors: 100."""
    hidden_dim: PositiveInt = 16
    """Width H of both recurrent layers. Authors: 36, the width of item and category together."""
    augru: Literal["paper", "official"] = "paper"
    """"paper": the attention a scales how much the candidate state replaces the old one, so a = 0
    keeps the state; the reset gate acts after its matrix (eqs. 2-5, 14-16). "official": the
    authors' code, where u keeps the old state and becomes (1 - a) * u, so a = 0 is an ordinary GRU
    step; the reset gate acts before its matrix."""
    auxiliary_loss_weight: NonNegativeFloat = 1.0
    """Weight of the auxiliary loss (eq. 7): each GRU state tells the next behaviour from another.
    Paper: 1. At 0 it is not computed."""
    auxiliary_layer_sizes: Annotated[
        tuple[PositiveInt, ...], Field(min_length=1), not_with(auxiliary_loss_weight=0.0)
    ] = (100, 50)
    """Hidden layers of the network that scores a state and a behaviour; sigmoid, as the authors'.
    They put a batch norm before it, which would tie a loss to its batch: left out."""

    @property
    def history(self) -> HistoryLookup:
        """The most recent behaviours of each request."""
        return HistoryLookup(recent=True, recent_length=self.max_length)


class SasrecEncoderConfig(InterestVectorConfig):
    """Sizes of SASRec's encoder."""

    max_length: PositiveInt = 50
    """Most recent behaviours that are encoded. Paper: 50 (200 on MovieLens)."""
    num_layers: PositiveInt = 2
    """Self-attention blocks. Paper: 2."""
    num_heads: PositiveInt = 1
    """Heads of each block; divides the embedding dim. Paper: 1."""

    @property
    def history(self) -> HistoryLookup:
        """The most recent behaviours of each request."""
        return HistoryLookup(recent=True, recent_length=self.max_length)


class SasrecConfig(SasrecEncoderConfig):
    """Sizes and the auxiliary loss."""

    kind: Literal["sasrec"]
    """Selects the module."""
    next_item_loss_weight: NonNegativeFloat = 0.0
    """Weight of the paper's own loss (its eq. 7): each state scores the next item against one
    negative. At 0, our default for click prediction, it is not computed."""


class CadirecConfig(SasrecEncoderConfig):
    """Sizes, and what trains the encoder beside the clicks; defaults are those of its code."""

    kind: Literal["cadirec"]
    """Selects the module."""
    num_heads: PositiveInt = 2
    """Heads of each block of the encoder; divides the embedding dim. CaDiRec: 2."""
    mask_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Share of the behaviours that are masked: noised, and replaced in the views. CaDiRec: 0.1 to
    0.2."""
    num_alternatives: Annotated[PositiveInt, not_with(contrastive_loss_weight=0.0)] = 10
    """A view takes one of this many items that the denoiser thinks likeliest. CaDiRec: 10."""
    num_stranger_behaviours: PositiveInt = 50
    """Most recent behaviours of the stranger that stand for all other items and users. CaDiRec:
    the whole vocabulary, one drawn negative, and the other sequences of the batch."""
    denoiser_layers: PositiveInt = 2
    """Blocks of the denoiser. CaDiRec: 2."""
    denoiser_heads: PositiveInt = 2
    """Heads of each of them; divides the embedding dim. CaDiRec: 2."""
    max_distance: PositiveInt = 50
    """Behaviours farther apart are as far apart as this to the denoiser. CaDiRec: 50, its longest
    sequence."""
    schedule: NoiseScheduleConfig = NoiseScheduleConfig(
        num_train_timesteps=1000, beta_schedule="sqrt"
    )
    """Forward process. CaDiRec: 1000 steps, "sqrt"."""
    temperature: Annotated[PositiveFloat, not_with(contrastive_loss_weight=0.0)] = 1.0
    """Divides the scores of the contrastive loss. CaDiRec: 1."""
    next_item_loss_weight: NonNegativeFloat = 1.0
    """Weight of SASRec's loss. CaDiRec: 1, its main loss."""
    contrastive_loss_weight: NonNegativeFloat = 0.1
    """Weight of the contrastive loss (alpha): two views of a history are alike, another user is
    not. CaDiRec: 0.1 to 0.2."""
    rounding_loss_weight: PositiveFloat = 0.2
    """Weight of the rounding loss (beta): the denoised vector names the masked item. CaDiRec: 0.1
    to 0.2."""
    denoise_loss_weight: NonNegativeFloat = 0.0
    """Weight of the squared error of the denoised vector (gamma), a mean over dimensions. CaDiRec:
    0. At 0 it is not computed, like every loss here."""

    @property
    def history(self) -> HistoryLookup:
        """The most recent behaviours of each request, and in training those of a stranger."""
        return HistoryLookup(recent=True, recent_length=self.max_length, stranger=True)


class HstuLayerConfig(InterestVectorConfig):
    """Settings of a layer."""

    variant: Literal["research", "ranking"] = "ranking"
    """Which of the authors' two codes the layer equals. "research": SiLU on U, V, Q and K, a bias
    of relative position and time inside the scores. "ranking" (DLRM-v3): SiLU on U only, scaled
    scores, position and time embeddings added to the tokens instead of a bias, output projected
    from [u, av, u * LN(av)]."""
    max_length: PositiveInt = 50
    """Most recent behaviours that are encoded. Authors: 200 (MovieLens), thousands in ranking."""
    num_heads: PositiveInt = 1
    """Authors: 1 in the base research model, 4 in DLRM-v3."""
    attention_dim: PositiveInt = 16
    """Width A of the queries and keys of a head. Authors: 50 of D = 50; 128 of D = 512."""
    linear_dim: PositiveInt = 16
    """Width V of the values and gates of a head. Authors: 50 of D = 50; 128 of D = 512."""


class HstuConfig(HstuLayerConfig):
    """Depth and the layers' settings; no dropout, as in every other module here."""

    kind: Literal["hstu"]
    """Selects the module."""
    num_layers: PositiveInt = 2
    """Authors: 2 in the base research model, 5 in DLRM-v3."""

    @property
    def history(self) -> HistoryLookup:
        """The most recent behaviours of each request."""
        return HistoryLookup(recent=True, recent_length=self.max_length)


SequentialConfig = DienConfig | SasrecConfig | CadirecConfig | HstuConfig
