"""The command line `darkroom`: `up` runs all parts on one machine, most other commands use a running darkroom."""
