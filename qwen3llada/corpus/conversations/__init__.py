"""From conversation records to prompts and answers as token ids."""
