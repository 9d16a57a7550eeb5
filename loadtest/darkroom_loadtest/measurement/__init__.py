"""What every measurement stands on: the processes of a run (`rig.py`), its figures and goals (`figures.py`), and
samples of processes (`samples.py`).
"""
