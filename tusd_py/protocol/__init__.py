"""What a client may ask and what it is answered: pure, and of the standard library alone."""
