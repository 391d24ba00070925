"""The web page, and the data behind it."""
