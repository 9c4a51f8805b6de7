"""What tests share: databases, stores, real processes, real clients, and a network that misbehaves."""
