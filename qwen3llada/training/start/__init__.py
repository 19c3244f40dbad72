"""Everything that happens before the first step."""
