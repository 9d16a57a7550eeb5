"""Flame graphs of submissions and workers, and the capacity model."""
