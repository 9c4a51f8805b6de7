"""Blocking hooks, each way to ask."""
