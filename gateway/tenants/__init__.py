"""Who asks, and how much they may: keys, limits."""
