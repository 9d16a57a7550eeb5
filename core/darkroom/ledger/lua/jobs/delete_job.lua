-- Removes everything that Redis has of a deleted job, whose tombstone is in the history: also pending events,
-- deliveries, what is still to be archived, and a dead letter. Returns `gone`, whether or not there was anything, or
-- `living` for a job that is not in a terminal state.
allow_at_maxmemory()
local rec = redis.call('HMGET', job_key(a.job), 'state', 'tenant')
if rec[1] and rec[2] == a.tenant and not is_terminal(rec[1]) then return 'living' end
if rec[1] and rec[2] == a.tenant then
  redis.call('DEL', job_key(a.job), log_key(a.job))
  redis.call('ZREM', outbox_key, a.job)
  redis.call('ZREM', history_key, a.job)
end
for _, id in ipairs(redis.call('ZRANGE', deliveries_of_key(a.job), 0, -1)) do
  local tenant, target = unpack(redis.call('HMGET', delivery_key(id), 'tenant', 'target'))
  if tenant == a.tenant then
    redis.call('DEL', delivery_key(id))
    redis.call('ZREM', deliveries_key(target), id)
    redis.call('ZREM', leased_key(target), id)
    redis.call('ZREM', deliveries_of_key(a.job), id)
    schedule_target(target)
  end
end
redis.call('ZREM', retired_key, a.job .. ' ' .. a.tenant)
if not rec[1] or rec[2] == a.tenant then uncount_ended(a.job) end
redis.call('ZREM', tenant_key(a.tenant), a.job)
redis.call('ZREM', dead_letters_key(a.tenant), a.job)
return 'gone'
