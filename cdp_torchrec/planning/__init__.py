"""Sharding-plan experiments: what a plan would cost, without the hardware.

`explore` plans every `case` for a `workload`: the `estimator` asks TorchRec's planner for the
tables, `dense` counts the rest, and `infeasible` finds what helps where nothing fits.
"""
