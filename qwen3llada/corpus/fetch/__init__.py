"""Where a user's data come from: the hub, folders, mixtures, slices, held-out rows."""
