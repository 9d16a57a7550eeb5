"""The models that jobs can name: one TOML file each, its parameters, and their validation. The door is `models.py`."""
