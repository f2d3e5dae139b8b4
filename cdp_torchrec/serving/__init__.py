"""Serving: an exported artifact, and the predictor that scores raw requests with it."""
