"""HTTP around the functions: routes, bodies, responses, conditional requests, OpenAPI, probes, metrics."""
