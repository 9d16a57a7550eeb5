-- forget: a terminal job was deleted, and the history keeps its tombstone: everything that Redis has of it goes, also
-- what was still to be told, delivered or archived, and a dead letter. Answers `gone`, whether or not there was anything, or
-- `living`.
may_always_run()
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
    schedule(target)
  end
end
redis.call('ZREM', retired_key, a.job .. ' ' .. a.tenant)
redis.call('ZREM', tenant_key(a.tenant), a.job)
redis.call('ZREM', dead_key(a.tenant), a.job)
return 'gone'
