"""The rules that conversations are held to, and what becomes of those that break them."""
