"""The courier: publishes events, delivers webhooks, archives jobs, and runs the ledger's timers."""
