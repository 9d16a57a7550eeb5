"""Scaling decisions as pure functions, and their simulation. The door is `decision.py`; `policy.py` has the policy."""
