"""Behaviours: the point-in-time store, and the forms in which histories are read."""
