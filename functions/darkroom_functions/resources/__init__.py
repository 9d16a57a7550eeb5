"""The resources of the API: how each is read, changed and shown."""
