"""`darkroom audit` and `darkroom doctor`: rules without input or output, and the readers that apply them.

The doors are `auditor.py`, with the rules in `audit.py`, and `doctor.py`, whose input `examination.py` reads.
"""
