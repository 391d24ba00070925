"""Which model answers: routes, judge, remote models."""
