-- purge: a dead letter is one no more, and is not redriven either. Answers `purged` the first time, `repeated` for one that
-- was purged or redriven before, `unknown` for a job of the tenant's that never was one.
may_always_run()
local rec = redis.call('HMGET', job_key(a.job), 'tenant', 'dead')
if redis.call('ZSCORE', dead_key(a.tenant), a.job) then
  leave_dead(a.job, a.tenant)
  return 'purged'
end
return rec[1] == a.tenant and rec[2] and 'repeated' or 'unknown'
