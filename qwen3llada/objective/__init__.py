"""The path from a batch to a loss, shared by training and evaluation."""
