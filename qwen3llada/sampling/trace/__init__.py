"""The canvas after each step, and the page that plays it."""
