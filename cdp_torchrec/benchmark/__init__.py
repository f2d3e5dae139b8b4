"""What training and scoring cost on the machine at hand."""
