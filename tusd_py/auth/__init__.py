"""Who is asking: one adapter per kind of credential, each an `Authenticator`."""
