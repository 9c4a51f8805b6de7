"""Endpoints of events: webhooks by HTTP, and programs in the directory of hooks."""
