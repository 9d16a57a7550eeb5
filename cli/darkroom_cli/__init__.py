"""The command line: `darkroom up` runs everything on one machine, the other commands are clients."""
