"""From documents to sequences of token ids, before training or while it runs."""
