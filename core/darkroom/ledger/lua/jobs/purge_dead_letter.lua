-- Removes a job from the dead letters, so that it cannot be redriven. Returns `purged` the first time, `repeated` for
-- one that was purged or redriven before, `unknown` for a job of the tenant that never was a dead letter.
allow_at_maxmemory()
local rec = redis.call('HMGET', job_key(a.job), 'tenant', 'dead')
if redis.call('ZSCORE', dead_letters_key(a.tenant), a.job) then
  remove_dead_letter(a.job, a.tenant)
  return 'purged'
end
return rec[1] == a.tenant and rec[2] and 'repeated' or 'unknown'
