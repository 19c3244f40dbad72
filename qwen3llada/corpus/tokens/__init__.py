"""The tokenizer, and token ids as files."""
