"""Rows of files in any format, read block by block."""
