"""HTTP for all functions: routes (`routes.py` is the door), bodies, responses, semantics, OpenAPI, probes, metrics."""
