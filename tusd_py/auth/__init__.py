"""Authentication: one adapter per kind of credential, each an `Authenticator`."""
