"""Held-out loss and likelihood."""
