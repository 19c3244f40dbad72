"""The page with all results."""
