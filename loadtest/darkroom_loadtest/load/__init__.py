"""`make run-loadtest`: locust users, their plan, the receivers of their webhooks, and the report."""
