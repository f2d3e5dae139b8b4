"""What making a dataset costs, and appending a day to it."""
