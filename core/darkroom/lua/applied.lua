-- applied: the result function has taken in the job's terminal event: the outbox entry goes. Once the history has the job
-- too (`archived.lua`), its time to live starts; that of a dead letter when it is purged or redriven. Answers `applied`
-- the first time, `repeated` later, `unknown` for a job or event that never was.
may_always_run()
local key = job_key(a.job)
local rec = redis.call('HMGET', key, 'end_seq', 'applied', 'tenant')
if not rec[1] or rec[1] ~= a.seq then return 'unknown' end
redis.call('ZREM', outbox_key, a.job)
if rec[2] then return 'repeated' end
redis.call('HSET', key, 'applied', now)
retire(a.job, rec[3])
return 'applied'
