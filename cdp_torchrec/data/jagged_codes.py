"""Id codes in bags of any length."""

from typing import NamedTuple

import numpy as np


class JaggedCodes(NamedTuple):
    """Codes of one key, bag after bag, without empty bags at the end."""

    values: np.ndarray
    lengths: np.ndarray
