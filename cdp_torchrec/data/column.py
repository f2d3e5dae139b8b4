"""A column of behaviours, wherever its values lie."""

from typing import Any, Protocol

import numpy as np


class Column(Protocol):
    """What is read of a column of behaviours: an array, or several as if they were one."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its values."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...
