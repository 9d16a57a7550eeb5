"""`make bench-*`: benchmarks of single parts, their rig, and the comparison of two reports."""
