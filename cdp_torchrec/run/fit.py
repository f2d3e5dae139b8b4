"""Whether the tensors of a checkpoint are those of a model, and what differs where they are not."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from cdp_torchrec.config.keys import dotted
from cdp_torchrec.environment import release
from cdp_torchrec.model.sparse_arch import is_table
from cdp_torchrec.run.metadata import SafeReader
from cdp_torchrec.run.records import CheckpointError, CheckpointRecord
from cdp_torchrec.run.saved import CONFIG

_DECIDES_STATE = (
    "model.",
    "data.vocabulary.",
    "data.exclude_features",
    "data.history.dayparts",
    "data.history.count_segments",
    "data.history.count_ages",
    "optimizer.sparse.kind",
)
"""Settings on which it depends which parameters and states there are, or beginnings of them."""


def check_fit(
    checkpoint: Path,
    record: CheckpointRecord,
    state: Mapping[str, Any],
    config_toml: str,
    *,
    may_grow: bool = False,
) -> None:
    """Compare the tensors of a checkpoint with those of the ranks; collective.

    Args:
        checkpoint: its directory.
        record: of the checkpoint.
        state: tensors of the model and its optimizers on this rank.
        config_toml: this run's configuration.
        may_grow: whether tables may have more rows than in the checkpoint, behind those of it.

    Raises:
        CheckpointError: it is of another model or of another release; names every difference.
        DamagedCheckpointError: the index of its tensors cannot be read.
    """
    different = config_differences(checkpoint, config_toml)
    # Which ids have which rows is decided by their counts and by data.vocabulary alone.
    may_grow = may_grow and not any(key.startswith("data.vocabulary.") for key in different)
    problems = _key_problems(checkpoint, state, may_grow=may_grow)
    if problems:
        why = "is of another model"
        if not different:
            why = (
                f"was written by {record.writer}, whose model has other parameters than that of "
                f"this release, {release()}; use that release, or train again"
            )
        raise CheckpointError(f"{checkpoint} {why}:" + _listed(different + problems))


def _key_problems(checkpoint: Path, state: Mapping[str, Any], *, may_grow: bool) -> list[str]:
    """Tensors of ours that the checkpoint lacks or has in another shape, and any left over."""
    saved = SafeReader(checkpoint).read_metadata().state_dict_metadata
    own = dotted(state)
    shapes = {
        key: tuple(entry.size)
        for key, entry in saved.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    # Ranks hold different optimizer keys: a table-wise table's state lives on its owner only.
    gathered: list[dict[str, tuple[int, ...]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, {key: tuple(tensor.size()) for key, tensor in own.items()})
    wanted = {key: shape for part in gathered for key, shape in part.items()}
    problems = [f"missing in the checkpoint: {key}" for key in sorted(set(wanted) - set(shapes))]
    problems += [
        f"not part of this model: {key}"
        for key in sorted(set(shapes) - set(wanted))
        if not key.startswith("rng.")
    ]
    problems += [
        f"{key}: shape {list(shapes[key])} in the checkpoint, {list(wanted[key])} in this model"
        for key in sorted(set(shapes) & set(wanted))
        if shapes[key] != wanted[key]
        and not (may_grow and is_table(key) and _has_grown(shapes[key], wanted[key]))
    ]
    return problems


def _has_grown(before: tuple[int, ...], now: tuple[int, ...]) -> bool:
    """Whether there are only more rows."""
    return len(before) == len(now) > 0 and before[0] < now[0] and before[1:] == now[1:]


def config_differences(checkpoint: Path, config_toml: str) -> list[str]:
    """Settings that decide which parameters there are, and differ from the checkpoint's.

    Args:
        checkpoint: its directory.
        config_toml: this run's configuration.
    """
    theirs = dotted(tomllib.loads((checkpoint / CONFIG).read_text()))
    ours = dotted(tomllib.loads(config_toml))
    return [
        f"{key} = {ours.get(key, 'unset')}, in the checkpoint {theirs.get(key, 'unset')}"
        for key in sorted(set(theirs) | set(ours))
        if key.startswith(_DECIDES_STATE) and ours.get(key) != theirs.get(key)
    ]


def _listed(problems: Sequence[str], most: int = 20) -> str:
    more = [f"... and {len(problems) - most} more"] if len(problems) > most else []
    return "".join(f"\n  {problem}" for problem in [*problems[:most], *more])
