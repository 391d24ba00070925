"""Which model is asked first: one route a file."""
