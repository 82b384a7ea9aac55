"""A service that is started for the occasion, and the load that a second process sends to it."""
