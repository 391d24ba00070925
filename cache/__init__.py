"""Answers that exist already: the exact cache, the join of identical requests in flight."""
