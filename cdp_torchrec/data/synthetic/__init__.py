"""A simulated search log whose true click probabilities are known, and its ideal observer."""
