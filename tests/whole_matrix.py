"""How much of the long tests' matrices runs."""

import os

WHOLE_MATRIX = "CDP_WHOLE_MATRIX" in os.environ
"""Whether all combinations run instead of a sample."""

KINDS = (
    *("ads", "cddrec", "cdp", "counts", "ddrm", "diffrec", "diffumin", "din"),
    *("hstu", "longer", "marm", "mtgr", "pooled", "sasrec"),
)
"""A preset of each kind: its whole ranker is exported, and its module alone with all combinations
only."""
