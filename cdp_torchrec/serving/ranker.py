"""The compiled dense part of a model, loaded; what compiles it is not imported here."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from cdp_torchrec.serving.artifact import ArtifactError
from cdp_torchrec.serving.compiled import load_compiled


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
