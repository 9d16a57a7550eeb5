"""The basis of every measurement: the processes of a run (`rig.py`), its figures and goals (`figures.py`), and samples
of processes and of Redis (`samples.py`).
"""
