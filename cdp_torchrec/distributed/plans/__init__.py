"""Sharding plans as such: searched, constrained, checked, kept in files.

A `problem` is what a plan is for; `job` poses that of the ranks at hand and gives them all one
plan, which `search` reads from a `file` or finds with the `planner` under `constraints`.
"""
