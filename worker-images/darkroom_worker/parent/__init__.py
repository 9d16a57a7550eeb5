"""parent."""
