"""Benchmarks, load tests and fault injection, each beside a baseline under the same settings."""
