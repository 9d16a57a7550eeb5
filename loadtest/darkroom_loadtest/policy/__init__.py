"""`make bench-policy`: scaling policies compared on simulated days."""
