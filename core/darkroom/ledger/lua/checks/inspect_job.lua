-- Reads a job at one moment, for the audit: its record, and the sets that list it. `pool`: the pool to search, where a
-- set there lists the job and its record names another pool or is gone; `letter_of`: the tenant whose dead letters list
-- it. `checks/snapshots.py` decodes it in this order.
local key = job_key(a.job)
local rec = redis.call('HMGET', key, 'state', 'pool', 'tenant', 'seq', 'end_seq', 'applied', 'archived', 'worker',
  'lease', 'pushed', 'end_data', PENDING_STARTS, 'dead')
local pool = a.pool or rec[2] or ''
local job = queued_job(a.job, pool)
local scopes = scopes_of(job)
local place = rec[1]
if place == 'pending' then
  for name, key_of in pairs({waiting = waiting_key, dispatched = dispatched_key, held = held_key}) do
    if redis.call('ZSCORE', key_of(pool), a.job) then place = name end
  end
end
local last = redis.call('XREVRANGE', log_key(a.job), '+', '-', 'COUNT', 1)[1]
return {
  rec,
  redis.call('ZSCORE', waiting_key(pool), a.job),
  redis.call('ZSCORE', dispatched_key(pool), a.job),
  redis.call('ZSCORE', due_key(pool), a.job),
  redis.call('ZSCORE', held_key(pool), a.job),
  redis.call('ZSCORE', running_key(pool), a.job),
  redis.call('ZSCORE', outbox_key, a.job),
  redis.call('ZSCORE', history_key, a.job),
  redis.call('ZSCORE', deadlines_key, a.job),
  rec[3] and redis.call('ZSCORE', tenant_key(rec[3]), a.job),
  redis.call('ZSCORE', dead_letters_key(a.letter_of or rec[3] or ''), a.job),
  rec[8] and redis.call('HGET', busy_key, rec[8]),
  redis.call('XLEN', log_key(a.job)),
  last and last[1] or false,
  redis.call('PTTL', key),
  (not rec[1] or is_in_order(job, place, scopes)) and 1 or 0,
  redis.call('HGET', pool_key(pool), 'quiet_until'),
  now,
}
