"""The worker: takes a pool's jobs from the queue broker and develops them with an engine."""
