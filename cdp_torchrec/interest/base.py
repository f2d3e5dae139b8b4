"""The seam between the ranking model and every interest module.

An interest module turns a user's history into the interest vector that joins the ranking tower.
It works on dense tensors only and owns no embedding table.

Words, each for one thing in all modules:

behaviour   one past action of a user: item, category, action type, age
history     all behaviours of the user before the request
gated       the part of the history in the target item's category
recent      the history whatever the category, up to its most recent data.history.max_length
stranger    another user's recent history, drawn by key for each request, in training
sequence    gated or recent behaviours one by one (`BehaviourSequence`)
pool        gated behaviours summed up (`GatedPool`), in segments by recency
daypart     the same, in segments by the time of day
part        a random part of the gated behaviours summed up, in training
whole       all behaviours summed up, whatever the category
block       sequences of similar length, padded, that a module computes on together
"""

# B impressions, D embedding dim, K segments of a gated history

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from cdp_torchrec.interest.sequence import BehaviourSequence


@dataclass(frozen=True)
class GatedPool:
    """Category-gated history, summed per segment (paper eqs. 2-3 before the division).

    By recency, segment 0 holds the most recent behaviours. With one segment, sums / lengths is
    eq. 3.
    """

    sums: Tensor
    """Sums of item embeddings, [B, K, D]."""
    lengths: Tensor
    """Number of behaviours in each segment, float [B, K]; 0 where empty."""


@dataclass(frozen=True)
class InterestInput:
    """Everything that an interest module may look at; a role without features has width 0."""

    user: Tensor
    """[B, D_user]"""
    query: Tensor
    """[B, D_query]"""
    item: Tensor
    """Target item, from the same table as the history's items, [B, D]."""
    item_attributes: Tensor
    """Category, where the log has one, and other attributes of the target item,
    [B, D_item_attributes]; the category comes first."""
    context: Tensor
    """Hour, page, position ..., [B, D_context]."""
    scene: Tensor
    """Client type, search source ..., [B, D_scene]."""
    key: Tensor
    """Int64 [B]: names each impression; all randomness is a function of it, but which negatives
    DIEN, SASRec and DiffuMIN draw also of the rank's batch."""
    item_id: Tensor
    """Code of the target item, exact also without a row of its own, int64 [B]."""
    category_id: Tensor
    """Code of the target item's category, int64 [B]; 0 where the log has none."""
    progress: Tensor | None = None
    """Passes over the training data before this step, the same for all impressions, float [B]: for
    what follows a schedule (Diff4Rec's curriculum). None outside of training."""
    domain_id: Tensor | None = None
    """Code of the request's domain, int64 [B], if the module asks for it and the log has one. Read
    by ADS, whose weights differ by domain."""
    pool: GatedPool | None = None
    """The category-gated history pooled by recency, if the module asks for it."""
    daypart: GatedPool | None = None
    """The same pooled by the time of day, in InterestDims.dayparts segments, where behaviours are
    told apart by it."""
    part: GatedPool | None = None
    """A random part of the gated history pooled by the time of day (in one segment, where that is
    not read), m of its n behaviours, if the module asks for it; None outside of training."""
    whole: GatedPool | None = None
    """The whole history pooled, whatever the category, in one segment, if the module asks for it.
    """
    gated: BehaviourSequence | None = None
    """The category-gated history, a sequence for each (request, category), if asked for."""
    recent: BehaviourSequence | None = None
    """The recent history, a sequence for each request, if asked for."""
    stranger: BehaviourSequence | None = None
    """The recent history of another user before the request, a sequence for each request, if asked
    for (CaDiRec, CDDRec, Diff4Rec): what it is told from, whatever else is in the batch. None
    outside of training."""


def missing(name: str) -> str:
    """What to say of a sequence that a module reads and was not given, such as recent."""
    return (
        f"InterestInput.{name} is missing: expected a BehaviourSequence, with an index as from "
        "cdp_torchrec.data.history.sequence_index.index_sequences"
    )


@dataclass(frozen=True)
class InterestDims:
    """Widths of InterestInput's tensors; 0 means that the dataset lacks the role."""

    user: int
    query: int
    item: int
    item_attributes: int
    context: int
    scene: int
    category: int = 0
    """Category of a behaviour and of the target item (the first part of item_attributes)."""
    action: int = 0
    """Action type and attributes of a behaviour."""
    domains: int = 0
    """No width: codes that a domain may have; 0 without domains."""
    dayparts: int = 1
    """No width: parts of the day by which behaviours are told apart."""


@dataclass(frozen=True)
class InterestOutput:
    """What an interest module hands to the tower, the loss and the log."""

    interest: Tensor
    """[B, interest_dim]"""
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    """Named auxiliary losses per impression, [B], unweighted; only in training mode."""
    click_logits: Mapping[str, Tensor] = field(default_factory=dict)
    """Logits of auxiliary click models, [B]; only in training mode. Their binary cross-entropy with
    the labels is an auxiliary loss of this name: labels never enter a module."""
    monitors: Mapping[str, Tensor] = field(default_factory=dict)
    """Named detached scalars for the log (gate weights, latent scale ...); in training mode, and
    only while the module is `monitored`."""


def check_output(module: "InterestModule", output: InterestOutput, *, batch_size: int) -> None:
    """Refuse what a module did not declare: the tower and the loss would fail, or go on, unasked.

    Args:
        module: whose output it is.
        output: what it gave.
        batch_size: number of impressions B.

    Raises:
        ValueError: a shape is another one, or the losses are not those of loss_weights.
    """
    name = type(module).__name__
    vectors = {**output.losses, **output.click_logits}
    expected = {"interest": (output.interest, (batch_size, module.interest_dim))}
    expected |= {f"{loss} (a loss, unreduced)": (v, (batch_size,)) for loss, v in vectors.items()}
    expected |= {f"{monitor} (a monitor)": (v, ()) for monitor, v in output.monitors.items()}
    for what, (value, shape) in expected.items():
        if tuple(value.shape) != shape:
            raise ValueError(f"{name}: {what}: expected {shape}, found {tuple(value.shape)}")
    declared = set(module.loss_weights) if module.training else set()
    if set(vectors) != declared:
        mode = "training: expected those of loss_weights," if module.training else "eval: expected"
        raise ValueError(
            f"{name}: losses in {mode} {sorted(declared) or 'none'}, found "
            f"{sorted(vectors) or 'none'}"
        )


class InterestModule(nn.Module):
    """Base class of all interest modules."""

    interest_dim: int
    """Width of the interest vector; 0: the module adds nothing to the tower."""
    loss_weights: Mapping[str, float]
    """Weight of each auxiliary loss in the total loss."""
    monitored: bool
    """Whether anybody will read the monitors of a batch: they are a fifth of the operator calls of
    a small module, and the log reads one step in ten."""

    def __init__(self) -> None:
        super().__init__()
        self.loss_weights = {}
        self.monitored = True

    @property
    def reports(self) -> bool:
        """Whether this call is to compute monitors."""
        return self.training and self.monitored

    @abstractmethod
    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Interest of the user in the target item, [B, interest_dim]."""
