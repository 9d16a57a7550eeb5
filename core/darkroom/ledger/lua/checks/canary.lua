-- Pushes a message that belongs to no job to the head of a pool's queue, for `darkroom doctor`. The worker that claims
-- it is recorded (`claim`) and drops it. Returns that worker, or an empty string: poll by calling again. `withdraw` = 1
-- removes the canary, from the queue too.
allow_at_maxmemory()
local key = canary_key(a.canary)
local message = a.message_head .. a.canary .. ':1' .. a.message_tail
local sent, worker = unpack(redis.call('HMGET', key, 'sent', 'worker'))
if a.withdraw then
  redis.call('LREM', queue_key(a.pool), 0, message)
  redis.call('DEL', key)
elseif not sent then
  redis.call('HSET', key, 'sent', now)
  redis.call('PEXPIRE', key, a.ttl_ms)
  redis.call('RPUSH', queue_key(a.pool), message)
end
return worker or ''
