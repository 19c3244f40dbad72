"""From samples to batches of corrupted token ids: order, noise, layout. Knows no file."""
