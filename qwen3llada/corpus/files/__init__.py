"""Rows of data files in any format, read in blocks."""
