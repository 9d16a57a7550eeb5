"""The commands that are clients of a running darkroom, one module each; `main.py` parses their arguments."""
