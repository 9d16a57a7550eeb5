-- canary: a message that stands for no job goes in front of a pool's list, for `darkroom doctor`; the worker that claims
-- it signs for it (`claim`) and drops it. Answers who signed, if anybody: ask by calling again. `withdraw` = 1 takes it
-- back, out of the list too.
may_always_run()
local key = canary_key(a.canary)
local message = a.message_head .. a.canary .. ':1' .. a.message_tail
local sent, worker = unpack(redis.call('HMGET', key, 'sent', 'worker'))
if a.withdraw then
  redis.call('LREM', list_key(a.pool), 0, message)
  redis.call('DEL', key)
elseif not sent then
  redis.call('HSET', key, 'sent', now)
  redis.call('PEXPIRE', key, a.ttl_ms)
  redis.call('RPUSH', list_key(a.pool), message)
end
return worker or ''
