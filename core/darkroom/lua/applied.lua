-- applied: the result function has taken in the job's terminal event: the outbox entry goes, the record's time to live
-- starts. Answers `applied` the first time, `repeated` later, `unknown` for a job or event that never was.
may_always_run()
local key = job_key(a.job)
local rec = redis.call('HMGET', key, 'end_seq', 'applied', 'tenant')
if not rec[1] or rec[1] ~= a.seq then return 'unknown' end
redis.call('ZREM', outbox_key, a.job)
if rec[2] then return 'repeated' end
redis.call('HSET', key, 'applied', now)
redis.call('PEXPIRE', key, RECORD_TTL_MS)
redis.call('PEXPIRE', log_key(a.job), LOG_TTL_MS)
-- The tenant's index outlives no record for long: each applied job takes a few of the overdue ones with it.
redis.call('ZADD', P .. ':retired', now + RECORD_TTL_MS, a.job .. ' ' .. rec[3])
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', P .. ':retired', '-inf', now, 'LIMIT', 0, 10)) do
  local id, tenant = string.match(entry, '^(%S+) (.*)$')
  redis.call('ZREM', P .. ':retired', entry)
  redis.call('ZREM', tenant_key(tenant), id)
end
return 'applied'
