"""`make chaos`: faults in every part while jobs run, and the verdict on what was lost or repeated."""
