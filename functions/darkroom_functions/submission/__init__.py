"""From a request to an accepted job: parsing, validation, webhooks, and batched accepts."""
