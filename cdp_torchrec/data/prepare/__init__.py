"""Converters: one file per log format, all through the same staging engine."""
