"""How much of the long tests' matrices runs."""

import os

WHOLE_MATRIX = "CDP_WHOLE_MATRIX" in os.environ
"""Whether all combinations run instead of a sample that has every value of every axis."""
