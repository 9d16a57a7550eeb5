-- Records that the courier committed a finished job to the history database: the history entry leaves, and a large
-- input leaves the record. Once the terminal event is applied too (`mark_applied.lua`), the record's time to live
-- starts; that of a dead letter when it is purged or redriven. Returns `archived` the first time, `repeated` later,
-- `unknown` for a job or end that does not exist (any more).
allow_at_maxmemory()
local key = job_key(a.job)
local rec = redis.call('HMGET', key, 'end_seq', 'archived', 'tenant')
if not rec[1] or rec[1] ~= a.seq then return 'unknown' end
redis.call('ZREM', history_key, a.job)
if rec[2] then return 'repeated' end
redis.call('HSET', key, 'archived', now)
-- The history has the input: readers complete a record from there. An empty one stays for readers of older versions.
if redis.call('HSTRLEN', key, 'input') > KEPT_INPUT then redis.call('HSET', key, 'input', '{}', 'input_archived', 1) end
start_ttl(a.job, rec[3])
return 'archived'
