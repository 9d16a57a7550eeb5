"""Benchmarks: each starts what it measures, beside a baseline under the same settings, and says what it saw."""
