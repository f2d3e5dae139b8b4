"""Cost of interest modules against the length of the history."""
