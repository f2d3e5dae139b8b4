"""Sharding-plan experiments: what a plan would cost, without the hardware."""
