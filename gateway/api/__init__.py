"""One file per public surface, and the life of a request at the edge (endpoint.py)."""
