-- archived: the courier has committed the ended job to the history database: the history entry goes, and the record's
-- input if it is large. Once the job's event is applied too (`mark_applied.lua`), its time to live starts; that of a dead letter when it is purged or redriven. Answers
-- `archived` the first time, `repeated` later, `unknown` for a job or end that is not there (any more).
may_always_run()
local key = job_key(a.job)
local rec = redis.call('HMGET', key, 'end_seq', 'archived', 'tenant')
if not rec[1] or rec[1] ~= a.seq then return 'unknown' end
redis.call('ZREM', history_key, a.job)
if rec[2] then return 'repeated' end
redis.call('HSET', key, 'archived', now)
-- The history has the input: readers complete a record from there. An empty one stays for readers of older versions.
if redis.call('HSTRLEN', key, 'input') > KEPT_INPUT then redis.call('HSET', key, 'input', '{}', 'input_archived', 1) end
retire(a.job, rec[3])
return 'archived'
