"""Published logs: one file makes a dataset directory of each one's official files."""
