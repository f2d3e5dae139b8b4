"""How much of the long tests' matrices runs."""

import os

import pytest

WHOLE_MATRIX = "CDP_WHOLE_MATRIX" in os.environ
"""Whether all combinations run instead of a sample."""

only_with_all_combinations = pytest.mark.skipif(
    not WHOLE_MATRIX, reason="only with all combinations (make check)"
)
"""For a test whose claim others make of what is near to it."""

KINDS = (
    *("ads", "cddrec", "cdp", "counts", "ddrm", "diffrec", "diffumin", "din"),
    *("hstu", "longer", "marm", "mtgr", "pooled", "sasrec"),
)
"""A preset of each kind: its whole ranker is exported, and its module alone with all combinations
only."""
