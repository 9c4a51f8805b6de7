"""Compares database, staging and store in both directions, and repairs what is safe to repair."""
