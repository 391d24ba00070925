"""The two bundled models: the scripts that made them, their data, their cards."""
