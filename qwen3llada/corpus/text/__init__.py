"""From documents to sequences of token ids, before or during training."""
