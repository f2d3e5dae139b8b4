"""Everything that knows about ranks: launch, process group, plans, optimizers."""
