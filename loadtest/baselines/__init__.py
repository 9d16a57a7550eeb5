"""Baselines that darkroom is compared with, each as short as possible."""
