"""Settings of the modules that read a history in its order: DIEN, SASRec and HSTU."""

# D embedding dim

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from cdp_torchrec.data.history_lookup import HistoryLookup
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
    auxiliary_layer_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (100, 50)
    """Hidden layers of the network that scores a state and a behaviour; sigmoid, as the authors'.
    They put a batch norm before it, which would tie a loss to its batch: left out."""

    @property
    def history(self) -> HistoryLookup:
        """The most recent behaviours of each request, with a step of the recurrence for each."""
        return HistoryLookup(recent=True, recent_length=self.max_length, graph_changes_beyond=0)


class SasrecConfig(InterestVectorConfig):
    """Sizes and the auxiliary loss."""

    kind: Literal["sasrec"]
    """Selects the module."""
    max_length: PositiveInt = 50
    """Most recent behaviours that are encoded. Paper: 50 (200 on MovieLens)."""
    num_layers: PositiveInt = 2
    """Self-attention blocks. Paper: 2."""
    num_heads: PositiveInt = 1
    """Heads of each block; divides the embedding dim. Paper: 1."""
    next_item_loss_weight: NonNegativeFloat = 0.0
    """Weight of the paper's own loss (its eq. 7): each state scores the next item against one
    negative. At 0, our default for click prediction, it is not computed."""

    @property
    def history(self) -> HistoryLookup:
        """The most recent behaviours of each request."""
        return HistoryLookup(recent=True, recent_length=self.max_length)


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


SequentialConfig = DienConfig | SasrecConfig | HstuConfig
