"""Training day after day: each day is measured before it is trained on."""
