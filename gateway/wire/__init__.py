"""The shapes on the wire: parse, render, and what of a request is part of its cache key."""
