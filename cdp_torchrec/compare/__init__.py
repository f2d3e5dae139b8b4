"""The tables of a paper: models x seeds x datasets through one trainer, with statistics."""
