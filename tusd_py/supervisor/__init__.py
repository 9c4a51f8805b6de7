"""`tusd-py serve`: the supervisor, its child processes, and what they share before the first request."""
