"""What plans do cost: measured on ranks, beside the estimates, and the fit."""
