"""Baselines: what darkroom is held against, each as short as it can honestly be."""
