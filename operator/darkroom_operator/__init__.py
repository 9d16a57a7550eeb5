"""The kopf operator: scales worker pools on queue depth, without a replica fewer under a busy worker."""
