"""Anybody's log: a mapping says which columns are what, a draft of it guesses."""
