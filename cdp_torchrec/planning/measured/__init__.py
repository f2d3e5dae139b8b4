"""What plans do cost: measured on ranks, beside the estimates, and the fit.

A `job` opens tables, ids and plans; `measurement` runs `sharded_tables` piece by piece;
`comparison` sets estimates beside it, and `fit` finds the bandwidths that explain both.
"""
