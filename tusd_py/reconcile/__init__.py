"""Comparing the record, the staging disk and the store both ways, and mending what is safe to mend."""
