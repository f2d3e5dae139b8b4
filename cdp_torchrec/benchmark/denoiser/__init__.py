"""Speed of the reverse process alone."""
