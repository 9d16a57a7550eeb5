"""`make bench-*`: benchmarks of single parts, and the comparison of two versions.

`run.py` runs all of them; `rig.py` starts and stops the processes, and `figures.py` writes the results.
"""
