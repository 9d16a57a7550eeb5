"""Posting to the sink and to webhooks: due items are leased, posted, and rescheduled after a failure.

`loop.py` is the door: the loop that `relay.py`, `notices.py` and `webhooks.py` share.
"""
