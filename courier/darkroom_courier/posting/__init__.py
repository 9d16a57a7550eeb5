"""Posting to the sink and to webhooks: what is due is leased, posted, and rescheduled where it was refused."""
