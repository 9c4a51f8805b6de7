"""Helpers of the acceptance tests: real processes, real clients, and a network that misbehaves."""
