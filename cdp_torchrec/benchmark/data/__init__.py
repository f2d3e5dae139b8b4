"""How fast histories reach a batch, from a point-in-time store and from inline copies."""
