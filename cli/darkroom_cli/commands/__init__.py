"""The commands that use a running darkroom, over HTTP or, for operators, its Redis; `parsers/` has their arguments."""
