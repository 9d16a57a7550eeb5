"""`darkroom up`: all parts of darkroom as processes of one machine."""
