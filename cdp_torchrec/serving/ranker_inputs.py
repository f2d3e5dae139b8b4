"""The inputs of the compiled dense part: tensors by name, in a fixed order.

The artifact lists the names in their order, so that a C++ server can call the program, too.
"""

from collections.abc import Mapping

from torch import Tensor

from cdp_torchrec.data.history.sequence_index import CandidateBlock, SequenceBlock, SequenceIndex
from cdp_torchrec.data.model_inputs import DenseInputs

_TENSORS = (
    "bag_lengths",
    "numbers",
    "request_index",
    "pool_index",
    "history_counts",
    "key",
    "item_id",
    "category_id",
)
SLOTS = ("gated", "recent")
"""Histories that modules read as sequences."""
_INDEX_TENSORS = (
    "item_id",
    "category_id",
    "age",
    "lengths",
    "owner",
    "sequence",
    "first_impression",
    "place",
)
OPTIONAL_INDEX_TENSORS = ("size", "attributes")
"""Of a sequence, where the log and the module have them."""


def ranker_inputs(embeddings: Mapping[str, Tensor], batch: DenseInputs) -> dict[str, Tensor]:
    """The program's inputs by name, in their order.

    Args:
        embeddings: by key, as RankingArch reads them.
        batch: its sequences in one block (`index_sequences(blocks="one")`).
    """
    inputs = {f"embedding.{key}": embeddings[key] for key in sorted(embeddings)}
    inputs |= {name: getattr(batch, name) for name in _TENSORS}
    if batch.domain_id is not None:
        inputs["domain_id"] = batch.domain_id
    for slot in SLOTS:
        index: SequenceIndex | None = getattr(batch, slot)
        if index is None:
            continue
        inputs |= {f"{slot}.{name}": getattr(index, name) for name in _INDEX_TENSORS}
        for name in OPTIONAL_INDEX_TENSORS:
            if getattr(index, name) is not None:
                inputs[f"{slot}.{name}"] = getattr(index, name)
        (of_sequences,), (of_candidates,) = index.sequence_blocks, index.candidate_blocks
        inputs |= {
            f"{slot}.sequence_block.sequence": of_sequences.sequence,
            f"{slot}.sequence_block.behaviour": of_sequences.behaviour,
            f"{slot}.candidate_block.sequence": of_candidates.sequence,
            f"{slot}.candidate_block.behaviour": of_candidates.behaviour,
            f"{slot}.candidate_block.impression": of_candidates.impression,
        }
    return inputs


def from_ranker_inputs(inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], DenseInputs]:
    """Embeddings and batch of `ranker_inputs`, as RankingArch reads them."""
    prefix = "embedding."
    embeddings = {
        name.removeprefix(prefix): tensor
        for name, tensor in inputs.items()
        if name.startswith(prefix)
    }
    batch = DenseInputs(
        **{name: inputs[name] for name in _TENSORS},
        domain_id=inputs.get("domain_id"),
        gated=_index("gated", inputs),
        recent=_index("recent", inputs),
        stranger=None,
        progress=None,
    )
    return embeddings, batch


def _index(slot: str, inputs: Mapping[str, Tensor]) -> SequenceIndex | None:
    if f"{slot}.item_id" not in inputs:
        return None
    return SequenceIndex(
        **{name: inputs[f"{slot}.{name}"] for name in _INDEX_TENSORS},
        size=inputs.get(f"{slot}.size"),
        attributes=inputs.get(f"{slot}.attributes"),
        sequence_blocks=(
            SequenceBlock(
                inputs[f"{slot}.sequence_block.sequence"],
                inputs[f"{slot}.sequence_block.behaviour"],
            ),
        ),
        candidate_blocks=(
            CandidateBlock(
                inputs[f"{slot}.candidate_block.sequence"],
                inputs[f"{slot}.candidate_block.behaviour"],
                inputs[f"{slot}.candidate_block.impression"],
            ),
        ),
    )
