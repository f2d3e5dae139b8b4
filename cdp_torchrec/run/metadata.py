"""Reading the index of a checkpoint's tensors without running what it says.

torch.distributed.checkpoint keeps the index as a pickle, and a pickle may call anything. Here only
the handful of plain classes that an index consists of can be named in one.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Size
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    TensorStorageMetadata,
)

from cdp_torchrec.run.records import DamagedCheckpointError

METADATA = ".metadata"
"""Name of the index."""

_DCP = "torch.distributed.checkpoint"
_CLASSES = {
    (f"{_DCP}.metadata", "Metadata"),
    (f"{_DCP}.metadata", "MetadataIndex"),
    (f"{_DCP}.metadata", "StorageMeta"),
    (f"{_DCP}.metadata", "TensorStorageMetadata"),
    (f"{_DCP}.metadata", "TensorProperties"),
    (f"{_DCP}.metadata", "ChunkStorageMetadata"),
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}
_DTYPES = {
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64"),
}


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CLASSES or (module == "torch" and name in _DTYPES):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _memory_format
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no index does")


def _memory_format(kind: Any, name: Any) -> _MEM_FORMAT_ENCODING:
    """In place of getattr, by which Python 3.11.0 to 3.11.3 pickle a member of an enumeration."""
    if kind is not _MEM_FORMAT_ENCODING:
        raise pickle.UnpicklingError("it names builtins.getattr, which no index does")
    return _MEM_FORMAT_ENCODING[name]


class SafeReader(FileSystemReader):
    """Reads a checkpoint of tensors; what its files say is never run."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index.

        Raises:
            DamagedCheckpointError: it is no index of tensors in files of this checkpoint.
        """
        path = Path(self.path) / METADATA
        try:
            with path.open("rb") as file:
                metadata = _IndexUnpickler(file).load()
            _check(metadata)
        # A damaged pickle, or one made to do harm, may fail in any way.
        except Exception as error:
            raise DamagedCheckpointError(f"{path}: is damaged: {error}") from error
        return metadata


class GrownReader(SafeReader):
    """As SafeReader, for tensors that may have more rows now: those behind are left as they are."""

    def __init__(self, path: Path, sizes: Mapping[str, Size]) -> None:
        """Args: the checkpoint, and the sizes of the tensors now, by key."""
        super().__init__(path)
        self._sizes = sizes

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index, whose tensors are as large as they are now; what is stored stays as it is."""
        metadata = super().read_metadata(*args, **kwargs)
        for key, entry in metadata.state_dict_metadata.items():
            if isinstance(entry, TensorStorageMetadata) and key in self._sizes:
                entry.size = self._sizes[key]
        return metadata


def _check(metadata: Any) -> None:
    if not isinstance(metadata, Metadata):
        raise TypeError(f"found a {type(metadata).__name__}")
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise TypeError(f"{key} is no tensor")
    for place in metadata.storage_data.values():
        assert isinstance(place, _StorageInfo)
        name = place.relative_path
        if Path(name).name != name or place.transform_descriptors:
            raise ValueError(f"it names {name}, which is no file of a checkpoint")
