"""Rules for conversations, and the treatment of records that break them."""
