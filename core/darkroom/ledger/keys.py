"""The names of all keys and channels that the ledger has in Redis.

The scripts take them from `lua/prelude.lua`, everything else from here; a test holds the two equal
(`tests/core/test_ledger_keys.py`). Only the ledger reads or writes a job's keys; others use `calls/` and `reads/`.
"""

from __future__ import annotations

from dataclasses import dataclass

QUEUE_PREFIX = "pool."
"""Prefix of the names of Celery queues of pools."""

PENDING_STARTS = "untold"
"""The field of a job record that lists its `started` events which are still to be published, as log numbers with blanks
between. Records of version 3 have it under this name.
"""


@dataclass(frozen=True)
class Keys:
    """The keys of one installation; every name begins with its namespace."""

    namespace: str

    def job(self, job_id: str) -> str:
        """Hash: the record of a job."""
        return f"{self.namespace}:job:{job_id}"

    def log(self, job_id: str) -> str:
        """Stream: the log of a job; entry `<seq>-0` is event number `seq`."""
        return f"{self.namespace}:log:{job_id}"

    def waiting(self, pool: str) -> str:
        """Sorted set: pending jobs without a message in the queue, by order (priority class, then fair share)."""
        return f"{self.namespace}:waiting:{pool}"

    def dispatched(self, pool: str) -> str:
        """Sorted set: pending jobs whose message was pushed, in the order of the queue."""
        return f"{self.namespace}:dispatched:{pool}"

    def due(self, pool: str) -> str:
        """Sorted set: pending jobs that wait for a retry, by when they may run."""
        return f"{self.namespace}:due:{pool}"

    def running(self, pool: str) -> str:
        """Sorted set: running jobs, by the end of their lease."""
        return f"{self.namespace}:running:{pool}"

    def pool(self, pool: str) -> str:
        """Hash: the models, the owner and the counters of a pool."""
        return f"{self.namespace}:pool:{pool}"

    def held(self, pool: str) -> str:
        """Sorted set: pending jobs above a running limit, by when they were held."""
        return f"{self.namespace}:held:{pool}"

    def ageing(self, pool: str) -> str:
        """Sorted set: jobs that wait in a priority class above 0, by when they entered it."""
        return f"{self.namespace}:ageing:{pool}"

    def virtual(self, pool: str) -> str:
        """Hash: the virtual time of each priority class of a pool, and of the users of a tenant in it."""
        return f"{self.namespace}:virtual:{pool}"

    def share(self, pool: str, flow: str) -> str:
        """Sorted set: a tenant's waiting jobs by order, or the pending jobs of one user of it (`<tenant>/<user>`)."""
        return f"{self.namespace}:share:{pool}:{flow}"

    def by_user(self, pool: str, tenant: str) -> str:
        """Sorted set: a tenant's waiting jobs in the order in which its users take turns."""
        return f"{self.namespace}:by-user:{pool}:{tenant}"

    def admitted(self, pool: str, scope: str) -> str:
        """Sorted set: the pending jobs of a pool that a running limit admits, by line. A scope is a tenant, or one of
        its keys (`<tenant>/<key>`).
        """
        return f"{self.namespace}:admitted:{pool}:{scope}"

    def excess(self, pool: str, scope: str) -> str:
        """Sorted set: the pending jobs of a pool that a running limit does not admit, by line."""
        return f"{self.namespace}:excess:{pool}:{scope}"

    def running_of(self, scope: str) -> str:
        """Set: the running jobs of a tenant or key with a running limit."""
        return f"{self.namespace}:running-of:{scope}"

    def running_limits(self, tenant: str) -> str:
        """Hash: the running limit of a tenant (`tenant`) and of each of its keys; 0 for a disabled tenant."""
        return f"{self.namespace}:running-limits:{tenant}"

    def limited_pools(self, tenant: str) -> str:
        """Set: the pools in which a tenant's jobs came under a running limit."""
        return f"{self.namespace}:limited-pools:{tenant}"

    def slots(self, pool: str) -> str:
        """Sorted set: the workers that a pool's queue is filled for, by when their heartbeat lapses."""
        return f"{self.namespace}:slots:{pool}"

    def worker(self, name: str) -> str:
        """Hash: a worker as it registered itself."""
        return f"{self.namespace}:worker:{name}"

    def workers_of(self, pool: str) -> str:
        """Sorted set: the workers of a pool, by when their heartbeat lapses."""
        return f"{self.namespace}:workers-of:{pool}"

    def decisions(self, pool: str) -> str:
        """Stream: the decision log of a pool."""
        return f"{self.namespace}:decisions:{pool}"

    def queue(self, pool: str) -> str:
        """List: the Celery queue of a pool."""
        return f"{self.celery_prefix}{QUEUE_PREFIX}{pool}"

    def unacked(self, pool: str) -> str:
        """Hash: the messages of a pool that Celery's transport has handed out and that were not acknowledged."""
        return f"{self.celery_prefix}unacked.{pool}"

    @property
    def celery_prefix(self) -> str:
        """What the names of all keys and channels of Celery begin with (`global_keyprefix`)."""
        return f"{self.namespace}:celery:"

    def tenant(self, tenant: str) -> str:
        """Sorted set: the ids of a tenant's jobs, in the order of their names."""
        return f"{self.namespace}:tenant:{tenant}"

    def tenant_stream(self, tenant: str) -> str:
        """Stream: the events of all jobs of a tenant. The channel on which an addition is announced has the same name.

        It is `news` in Redis, where older parts read it.
        """
        return f"{self.namespace}:news:{tenant}"

    def dead_letters(self, tenant: str) -> str:
        """Sorted set: a tenant's dead letters, by when they failed."""
        return f"{self.namespace}:dead:{tenant}"

    def idempotency(self, tenant: str, idempotency_key: str) -> str:
        """String: the job that was submitted under an idempotency key, and the fingerprint of its request."""
        return f"{self.namespace}:idem:{tenant}:{idempotency_key}"

    def canary(self, canary_id: str) -> str:
        """Hash: a canary message, and the worker that received it."""
        return f"{self.namespace}:canary:{canary_id}"

    def subscription(self, subscription_id: str) -> str:
        """Hash: a webhook subscription."""
        return f"{self.namespace}:subscription:{subscription_id}"

    def subscriptions(self, tenant: str) -> str:
        """Sorted set: the ids of a tenant's subscriptions, in the order of their names."""
        return f"{self.namespace}:subscriptions:{tenant}"

    def start_subscriptions(self, tenant: str) -> str:
        """Set: those of a tenant's subscriptions that are enabled and ask for `started` events."""
        return f"{self.namespace}:starters:{tenant}"

    def delivery(self, delivery_id: str) -> str:
        """Hash: a delivery with its attempts."""
        return f"{self.namespace}:delivery:{delivery_id}"

    def deliveries_of(self, job_id: str) -> str:
        """Sorted set: the deliveries of a job; the score is 1 for an open one, 0 for a finished one."""
        return f"{self.namespace}:deliveries-of:{job_id}"

    def deliveries(self, target: str) -> str:
        """Sorted set: the open deliveries to a target, by when they are due."""
        return f"{self.namespace}:deliveries:{target}"

    def leased(self, target: str) -> str:
        """Sorted set: the deliveries to a target that a courier has leased, by the end of the lease."""
        return f"{self.namespace}:leased:{target}"

    def target(self, target: str) -> str:
        """Hash: the failures, the pause and the rate of a target."""
        return f"{self.namespace}:target:{target}"

    @property
    def targets(self) -> str:
        """Sorted set: the targets with open deliveries, by when the next one may be posted."""
        return f"{self.namespace}:targets"

    @property
    def notices(self) -> str:
        """Sorted set: subscriptions whose change of state is still to be published, by when that is due."""
        return f"{self.namespace}:notices"

    def undelivered(self, event_id: str) -> str:
        """Hash: an undelivered event."""
        return f"{self.namespace}:undelivered:{event_id}"

    def undelivered_by_tenant(self, tenant: str) -> str:
        """Sorted set: a tenant's undelivered events, by when they failed last."""
        return f"{self.namespace}:undelivered-by-tenant:{tenant}"

    def undelivered_of(self, group: str) -> str:
        """Sorted set: the undelivered events of one tenant and source, by when they failed last."""
        return f"{self.namespace}:undelivered-of:{group}"

    @property
    def undelivered_by_age(self) -> str:
        """Sorted set: all undelivered events, by when they failed last."""
        return f"{self.namespace}:undelivered-by-age"

    @property
    def undelivered_by_bytes(self) -> str:
        """Sorted set: the groups of undelivered events, by their bytes."""
        return f"{self.namespace}:undelivered-by-bytes"

    @property
    def undelivered_by_count(self) -> str:
        """Sorted set: the groups of undelivered events, by their number of events."""
        return f"{self.namespace}:undelivered-by-count"

    @property
    def clock(self) -> str:
        """Hash: Redis' clock at the last tick, and the clocks of other parts compared with it."""
        return f"{self.namespace}:clock"

    @property
    def epoch(self) -> str:
        """Hash: the epoch of the ledger, and a loss of data that is not acknowledged."""
        return f"{self.namespace}:epoch"

    @property
    def pools(self) -> str:
        """Set: the names of all pools that were announced."""
        return f"{self.namespace}:pools"

    @property
    def workers(self) -> str:
        """Sorted set: the workers of all pools, by when their heartbeat lapses."""
        return f"{self.namespace}:workers"

    @property
    def busy(self) -> str:
        """Hash: the job that each busy worker runs."""
        return f"{self.namespace}:busy"

    @property
    def outbox(self) -> str:
        """Sorted set: jobs with events that are still to be published, by when that is due."""
        return f"{self.namespace}:outbox"

    @property
    def history(self) -> str:
        """Sorted set: finished jobs that are still to be written to the history, by when that is due."""
        return f"{self.namespace}:history"

    @property
    def retired(self) -> str:
        """Sorted set: jobs whose record has a time to live, by when it ends."""
        return f"{self.namespace}:retired"

    @property
    def ended(self) -> str:
        """Hash: the bytes that each job with a time to live counts for, in the limit of finished jobs."""
        return f"{self.namespace}:ended"

    @property
    def deadlines(self) -> str:
        """Sorted set: pending jobs with a start deadline, by that deadline."""
        return f"{self.namespace}:deadlines"

    @property
    def counters(self) -> str:
        """Hash: counters of the whole ledger, such as `unfinished_bytes`."""
        return f"{self.namespace}:counters"

    @property
    def access(self) -> str:
        """Hash: the copy of tenants and keys (`access/directory.py`)."""
        return f"{self.namespace}:access"

    def limits(self, tenant: str, key_id: str | None = None) -> str:
        """Hash: the counts that limits of a tenant, or of one of its credentials, compare."""
        return f"{self.namespace}:limits:{tenant}" + ("" if key_id is None else f":{key_id}")

    @property
    def key_uses(self) -> str:
        """Hash: when each API key was last used, until SQL has it."""
        return f"{self.namespace}:key-uses"

    def grant(self, kind: str, digest: str) -> str:
        """Hash: a ticket or a session, by the SHA-256 of its text."""
        return f"{self.namespace}:grant:{kind}:{digest}"

    def grants_of(self, kind: str, owner: str) -> str:
        """Sorted set: the tickets or the sessions of a credential, by when they expire."""
        return f"{self.namespace}:grants-of:{kind}:{owner}"

    @property
    def audit(self) -> str:
        """Sorted set: entries of the audit trail, in their order, until SQL has them."""
        return f"{self.namespace}:audit"

    @property
    def audit_open(self) -> str:
        """Hash: audited operations that have not returned yet: since when, and the entry with an unknown outcome."""
        return f"{self.namespace}:audit-open"

    @property
    def audit_head(self) -> str:
        """Hash: the end of the audit trail's chain as SQL had it last."""
        return f"{self.namespace}:audit-head"

    def lease_reply(self, kind: str, owner: str) -> str:
        """Hash: what the last call for a lease returned to its owner, for a repeated call."""
        return f"{self.namespace}:taken:{kind}:{owner}"

    @property
    def log_draft(self) -> str:
        """Stream: a name that `accept` uses for a moment while it replaces a log by a copy of itself."""
        return f"{self.namespace}:log-draft"

    @property
    def never(self) -> str:
        """A key that does not exist: a script deletes it first, so that Redis runs the rest at `maxmemory` too."""
        return f"{self.namespace}:never"

    def live_channel(self, job_id: str) -> str:
        """Channel: each new entry of a job's log; `records.decode_live` decodes the payload."""
        return f"{self.namespace}:live:{job_id}"

    @property
    def wake_channel(self) -> str:
        """Channel: `outbox`, `deliveries` or `backlog <pool>`, when the courier or the operator has work."""
        return f"{self.namespace}:wake"

    @property
    def access_channel(self) -> str:
        """Channel: the entry of `access` that has changed."""
        return f"{self.namespace}:access-changed"
