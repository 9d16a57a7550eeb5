"""What accompanies a credential: the cookie of a session, and open connections that end with it."""
