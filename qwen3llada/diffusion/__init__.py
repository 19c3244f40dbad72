"""Corruption and loss as pure tensor functions."""
