"""Traces: which step decided each token, and the page that plays them."""
