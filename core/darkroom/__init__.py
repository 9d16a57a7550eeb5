"""What all parts of darkroom agree on: jobs, events, models, queues, the ledger, settings, errors, logs."""
