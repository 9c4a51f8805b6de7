"""What those commands do that need more than the command line: each module is imported by its own only."""
