"""Trained tensors of a checkpoint, whole, whatever plan and ranks it was trained with."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from cdp_torchrec.model.managed_collision import row_owners
from cdp_torchrec.model.sparse_arch import TABLE_MARKS, is_table, table_name
from cdp_torchrec.run.checksums import verify
from cdp_torchrec.run.metadata import SafeReader
from cdp_torchrec.run.records import CHECKPOINT, CheckpointError, read_record

_MODEL = "model"
_DENSE = ".ranking_arch."


@dataclass(frozen=True)
class Weights:
    """Parameters and buffers of a trained model."""

    tables: Mapping[str, Tensor]
    """Float32 [E, D] by entity."""
    owners: Mapping[str, Tensor]
    """The id that owns each row, int64 [E], of tables with managed collision; -1: nobody."""
    dense: Mapping[str, Tensor]
    """State of RankingArch."""


def load_weights(checkpoint: Path, entities: Mapping[str, tuple[int, int]]) -> Weights:
    """Read a checkpoint without building the sharded model.

    Args:
        checkpoint: a checkpoint directory.
        entities: rows and width of every table, by entity.

    Raises:
        CheckpointError: a table is missing or has another shape.
        DamagedCheckpointError: files of the checkpoint are damaged; names them.
    """
    record = read_record(checkpoint / CHECKPOINT)
    verify(checkpoint, record, record.files)
    reader = SafeReader(checkpoint)
    saved = reader.read_metadata().state_dict_metadata
    state = {
        key.removeprefix(f"{_MODEL}."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in saved.items()
        if key.startswith(f"{_MODEL}.") and isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load({_MODEL: state}, storage_reader=reader, no_dist=True)
    found = {key: tensor for key, tensor in state.items() if is_table(key)}
    tables = {}
    for entity, shape in entities.items():
        names = [f"{mark}{table_name(entity)}.weight" for mark in TABLE_MARKS]
        own = [t for key, t in found.items() if any(key.endswith(name) for name in names)]
        if len(own) != 1 or tuple(own[0].shape) != shape:
            raise CheckpointError(
                f"{checkpoint}: table '{entity}' of shape {list(shape)} is expected, found "
                f"{[list(t.shape) for t in own]}"
            )
        tables[entity] = own[0].float()
    dense = {k.partition(_DENSE)[2]: t for k, t in state.items() if _DENSE in k}
    return Weights(tables, _owners(state, tables), dense)


def _owners(state: Mapping[str, Tensor], entities: Iterable[str]) -> dict[str, Tensor]:
    maps = {key.rpartition(".")[0] for key in state if key.endswith(".keys")}
    names = {entity: f".{table_name(entity)}" for entity in entities}
    return {
        entity: row_owners(state[f"{found}.keys"], state[f"{found}.rows"])
        for entity, name in names.items()
        for found in maps
        if found.endswith(name)
    }
