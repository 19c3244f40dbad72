"""From sources of text and conversations to batches of corrupted token ids."""
