"""From samples to micro-batches of corrupted token ids: order, noise, layout. Reads no files."""
