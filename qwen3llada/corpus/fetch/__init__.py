"""Download of a user's data: hub, local folders, mixtures, slices, held-out rows."""
