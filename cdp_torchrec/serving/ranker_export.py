"""The dense part of a model as one compiled program on a flat list of tensors.

Tables stay outside: quantized lookups do not pass AOTInductor, and a table that changes or grows
needs no compilation.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler
from torch.export import Dim

from cdp_torchrec.data.history.sequence_index import SHORTEST_BLOCK
from cdp_torchrec.data.layout import FeatureLayout
from cdp_torchrec.model.embedding_sets import EmbeddingSets
from cdp_torchrec.model.ranking import RankingArch
from cdp_torchrec.serving.artifact import ArtifactError
from cdp_torchrec.serving.compile import compile_ranker
from cdp_torchrec.serving.ranker_inputs import OPTIONAL_INDEX_TENSORS, SLOTS, from_ranker_inputs


class RankerProgram(nn.Module):
    """Click probabilities from the tensors that `ranker_inputs` names."""

    def __init__(self, arch: RankingArch | EmbeddingSets, names: Sequence[str]) -> None:
        """Args: the trained dense part, and the names of the inputs."""
        super().__init__()
        self.arch = arch
        self._names = tuple(names)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Probabilities of B impressions, [B]."""
        inputs = dict(zip(self._names, tensors, strict=True))
        embeddings, batch = from_ranker_inputs(inputs)
        return torch.sigmoid(self.arch(embeddings, batch).logits)


def export_ranker(
    arch: RankingArch | EmbeddingSets,
    layout: FeatureLayout,
    inputs: Mapping[str, Tensor],
    package: Path,
    *,
    max_history_length: int,
) -> None:
    """Compile the dense part with all sizes free; see HistoryLookup.shortest_served.

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
    behaviours = {slot: Dim(f"{slot}_behaviours", min=2) for slot in SLOTS}
    lengths = {
        "gated": (SHORTEST_BLOCK, max_history_length),
        "recent": (
            max(layout.history.shortest_served(max_history_length), SHORTEST_BLOCK),
            layout.history.longest_recent(max_history_length),
        ),
    }
    columns = {
        slot: Dim(f"{slot}_columns", min=shortest, max=longest)
        for slot, (shortest, longest) in lengths.items()
        if longest > shortest  # else all blocks are equally long
    }
    rows = {
        f"{slot}.{block}": Dim(f"{slot}_{block}_rows", min=2)
        for slot in SLOTS
        for block in ("sequence_block", "candidate_block")
    }
    lists = {f"embedding.{f.key}": behaviours[f.slot] for f in layout.features if f.is_sequence}
    for slot in SLOTS:
        for name in ("item_id", "category_id", "age", "owner", *OPTIONAL_INDEX_TENSORS):
            lists[f"{slot}.{name}"] = behaviours[slot]
    for name in names:
        parent, _, last = name.rpartition(".")
        sizes = {0: lists.get(name, rows.get(parent, places))}
        slot = name.partition(".")[0]
        if last == "behaviour" and slot in columns:
            sizes[1] = columns[slot]
        yield sizes
