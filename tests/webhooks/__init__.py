"""What receivers of webhooks import."""
