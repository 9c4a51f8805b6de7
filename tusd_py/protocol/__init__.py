"""Requests and replies of the protocols: pure, and of the standard library alone."""
