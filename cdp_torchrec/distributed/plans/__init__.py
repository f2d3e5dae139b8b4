"""Sharding plans as such: searched, constrained, checked, kept in files."""
