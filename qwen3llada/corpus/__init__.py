"""From sources of text and conversations to validated, tokenized data."""
