"""The HTTP face: parses requests, names the layers, keeps the ledger. Start at assemble.py."""
