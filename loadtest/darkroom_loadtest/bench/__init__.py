"""`make bench-*`: benchmarks of single parts, and the comparison of two versions. `run.py` runs all of them."""
