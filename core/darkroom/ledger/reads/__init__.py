"""Reads of the ledger, by subject: functions that take an `AsyncLedger` and change nothing.

`jobs.py` has pages of jobs and what is still to be published or archived of them, `job_logs.py` the logs of jobs and
the streams of tenants, `letters.py` dead letters and undelivered events, `webhooks.py` subscriptions and deliveries,
`scaling.py` pools and workers, `access.py` tenants and keys, `server.py` Redis itself, and `checks.py` what the audit
and the doctor examine. One record is read with `AsyncLedger.job`.

All raise LedgerUnavailable while Redis is away.
"""

from darkroom.ledger.reads.access import access_entries, audit_head, key_uses
from darkroom.ledger.reads.checks import (
    SLICE,
    OutboxLeases,
    busy_jobs,
    fields,
    job_ids,
    job_time,
    members,
    names,
    outbox_leases,
    queued_messages,
    vanished_jobs,
)
from darkroom.ledger.reads.job_logs import (
    has_stream_entry,
    log,
    log_entries,
    log_heads,
    logs,
    stream_head,
    tenant_stream,
)
from darkroom.ledger.reads.jobs import marks, outbox, page, pending_starts
from darkroom.ledger.reads.letters import ListPosition, dead_letters, is_dead_letter, undelivered, undelivered_positions
from darkroom.ledger.reads.scaling import decisions, foreign_messages, observe, pools, pools_of, workers
from darkroom.ledger.reads.server import epoch, memory, now, unfinished_bytes
from darkroom.ledger.reads.webhooks import deliveries, delivery, subscription, subscriptions

__all__ = [
    "SLICE",
    "ListPosition",
    "OutboxLeases",
    "access_entries",
    "audit_head",
    "busy_jobs",
    "dead_letters",
    "decisions",
    "deliveries",
    "delivery",
    "epoch",
    "fields",
    "foreign_messages",
    "has_stream_entry",
    "is_dead_letter",
    "job_ids",
    "job_time",
    "key_uses",
    "log",
    "log_entries",
    "log_heads",
    "logs",
    "marks",
    "members",
    "memory",
    "names",
    "now",
    "observe",
    "outbox",
    "outbox_leases",
    "page",
    "pending_starts",
    "pools",
    "pools_of",
    "queued_messages",
    "stream_head",
    "subscription",
    "subscriptions",
    "tenant_stream",
    "undelivered",
    "undelivered_positions",
    "unfinished_bytes",
    "vanished_jobs",
    "workers",
]
