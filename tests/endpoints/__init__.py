"""Those who are told of events."""
