"""Baselines: what darkroom is measured against, each as short as possible."""
