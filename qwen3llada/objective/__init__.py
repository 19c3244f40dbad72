"""The one path from a batch to a loss, for training and evaluation."""
