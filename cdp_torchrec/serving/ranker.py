"""The dense part of a model as one compiled program on a flat list of tensors.

Tables stay outside: quantized lookups do not pass AOTInductor, and a table that changes or grows
needs no compilation. The program's inputs have names (`ranker_inputs`), which the artifact lists in
their order, so that a C++ server can call it, too.
"""

# B places of the batch, R requests, L behaviours, D embedding dim

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler
from torch.export import Dim

from cdp_torchrec.data.batch import DenseInputs
from cdp_torchrec.data.layout import FeatureLayout
from cdp_torchrec.data.sequence_index import (
    SHORTEST_BLOCK,
    CandidateBlock,
    SequenceBlock,
    SequenceIndex,
)
from cdp_torchrec.model.ranking import DenseBatch, RankingArch
from cdp_torchrec.serving.artifact import ArtifactError
from cdp_torchrec.serving.compile import compile_ranker
from cdp_torchrec.serving.compiled import load_compiled

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
_SLOTS = ("gated", "recent")
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
_OPTIONAL_INDEX_TENSORS = ("size", "attributes")


def ranker_inputs(embeddings: Mapping[str, Tensor], batch: DenseBatch) -> dict[str, Tensor]:
    """The program's inputs by name, in their order.

    Args:
        embeddings: by key, as RankingArch reads them.
        batch: its sequences in one block (`index_sequences(blocks="one")`).
    """
    inputs = {f"embedding.{key}": embeddings[key] for key in sorted(embeddings)}
    inputs |= {name: getattr(batch, name) for name in _TENSORS}
    if batch.domain_id is not None:
        inputs["domain_id"] = batch.domain_id
    for slot in _SLOTS:
        index: SequenceIndex | None = getattr(batch, slot)
        if index is None:
            continue
        inputs |= {f"{slot}.{name}": getattr(index, name) for name in _INDEX_TENSORS}
        for name in _OPTIONAL_INDEX_TENSORS:
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


class RankerProgram(nn.Module):
    """Click probabilities from the tensors that `ranker_inputs` names."""

    def __init__(self, arch: RankingArch, names: Sequence[str]) -> None:
        """Args: the trained dense part, and the names of the inputs."""
        super().__init__()
        self.arch = arch
        self._names = tuple(names)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Probabilities of B impressions, [B]."""
        inputs = dict(zip(self._names, tensors, strict=True))
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
        return torch.sigmoid(self.arch(embeddings, batch).logits)


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


def export_ranker(
    arch: RankingArch,
    layout: FeatureLayout,
    inputs: Mapping[str, Tensor],
    package: Path,
    *,
    max_history_length: int,
) -> None:
    """Compile the dense part with all sizes free; see HistoryLookup.served_recent_length.

    Args:
        arch: the trained dense part, on the device of the inputs.
        layout: tells which embeddings are those of behaviours.
        inputs: an example from `ranker_inputs`.
        package: the file to write, `*.pt2`.
        max_history_length: behaviours of a sequence, the most recent ones.

    Raises:
        ArtifactError: there is no working C++ compiler, or the module's graph depends on the sizes.
    """
    try:
        compile_ranker(
            RankerProgram(arch, list(inputs)),
            tuple(inputs.values()),
            dynamic_shapes=(tuple(free_sizes(layout, list(inputs), max_history_length)),),
            package=package,
        )
    except UserError as error:
        raise ArtifactError(
            f"the model cannot be exported: its graph depends on the sizes of a request: {error}"
        ) from error
    except (InvalidCxxCompiler, CppCompileError) as error:
        raise _no_compiler(error) from error


def check_compiler() -> None:
    """Find out in a moment what compiling would find out later.

    Raises:
        ArtifactError: there is no C++ compiler.
    """
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise _no_compiler(error) from error


def _no_compiler(error: Exception) -> ArtifactError:
    return ArtifactError(
        "the model cannot be compiled: AOTInductor needs a C++17 compiler with OpenMP, named by "
        f"CXX or found as g++: {error}"
    )


def free_sizes(
    layout: FeatureLayout, names: Sequence[str], max_history_length: int
) -> Iterator[dict[int, Dim]]:
    """Sizes that the requests decide, by dimension, for each input; equal names are equal sizes."""
    places = Dim("places", min=3)
    behaviours = {slot: Dim(f"{slot}_behaviours", min=2) for slot in _SLOTS}
    longest = {"gated": max_history_length}
    if layout.history.served_recent_length(max_history_length) is None:
        longest["recent"] = layout.history.longest_recent(max_history_length)
    columns = {
        slot: Dim(f"{slot}_columns", min=SHORTEST_BLOCK, max=length)
        for slot, length in longest.items()
        if length > SHORTEST_BLOCK  # else all blocks are equally long
    }
    rows = {
        f"{slot}.{block}": Dim(f"{slot}_{block}_rows", min=2)
        for slot in _SLOTS
        for block in ("sequence_block", "candidate_block")
    }
    lists = {f"embedding.{f.key}": behaviours[f.slot] for f in layout.features if f.is_sequence}
    for slot in _SLOTS:
        for name in ("item_id", "category_id", "age", "owner", *_OPTIONAL_INDEX_TENSORS):
            lists[f"{slot}.{name}"] = behaviours[slot]
    for name in names:
        parent, _, last = name.rpartition(".")
        sizes = {0: lists.get(name, rows.get(parent, places))}
        slot = name.partition(".")[0]
        if last == "behaviour" and slot in columns:
            sizes[1] = columns[slot]
        yield sizes


class Ranker:
    """A loaded package. Threads may share it; at most `num_runners` of them compute at once."""

    def __init__(self, path: Path, names: Sequence[str], *, num_runners: int) -> None:
        """Load a package.

        Args:
            path: written by `export_ranker`.
            names: its inputs in their order.
            num_runners: computations at the same time, each with buffers of its own.

        Raises:
            ArtifactError: it cannot be loaded.
        """
        self._names = tuple(names)
        try:
            model = load_compiled(path, num_runners=num_runners)
        except (OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"{path}: cannot load the compiled model: {error}") from error
        self._model = model

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Probabilities [B] of inputs by name."""
        assert tuple(inputs) == self._names, "inputs differ from those of the artifact"
        return self._model.run(list(inputs.values()))[0]
