"""cloudevents."""
