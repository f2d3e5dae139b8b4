"""How much of the long tests' matrices runs."""

import os

import pytest

WHOLE_MATRIX = "CDP_WHOLE_MATRIX" in os.environ
"""Whether all combinations run instead of a sample."""

only_whole = pytest.mark.skipif(not WHOLE_MATRIX, reason="runs with CDP_WHOLE_MATRIX=1")
"""A test that takes long and whose claim others make of a smaller part."""

KINDS = (
    *("ads", "cddrec", "cdp", "counts", "ddrm", "diffrec", "diffumin", "din"),
    *("hstu", "longer", "marm", "mtgr", "pooled", "sasrec"),
)
"""A preset of each kind: its whole ranker is exported, and its module alone with all combinations
only. `torch.compile` captures one of each kind, too."""
