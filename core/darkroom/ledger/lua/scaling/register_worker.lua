-- Records a worker's state: starting, ready, busy, draining, faulty or gone. Ready and busy workers are the pool's
-- slots as long as their heartbeat is recent (`ttl_ms`), but for those that `drain` marked; the number of slots limits
-- the Celery queue. `foreign`: how many foreign messages it dropped since its last report, which `foreign_op` numbers.
allow_at_maxmemory()
local key = worker_key(a.worker)
if a.foreign and redis.call('HGET', key, 'foreign_op') ~= a.foreign_op then
  redis.call('HSET', key, 'foreign_op', a.foreign_op)
  redis.call('HINCRBY', pool_key(a.pool), 'foreign', a.foreign)
  redis.call('HSET', pool_key(a.pool), 'foreign_at', now, 'foreign_reason', a.foreign_reason)
end
if a.state == 'gone' then
  redis.call('DEL', key)
  redis.call('ZREM', slots_key(a.pool), a.worker)
  redis.call('ZREM', workers_key, a.worker)
  redis.call('ZREM', workers_of_key(a.pool), a.worker)
  return 'ok'
end
redis.call('HSET', key, 'name', a.worker, 'pool', a.pool, 'pod', a.pod, 'state', a.state, 'seen', now,
  'models', a.models)
redis.call('PEXPIRE', key, tonumber(a.ttl_ms) * 4)
redis.call('ZADD', workers_key, now + tonumber(a.ttl_ms), a.worker)
redis.call('ZREMRANGEBYSCORE', workers_key, '-inf', now - tonumber(a.ttl_ms) * 4)
redis.call('ZADD', workers_of_key(a.pool), now + tonumber(a.ttl_ms), a.worker)
redis.call('ZREMRANGEBYSCORE', workers_of_key(a.pool), '-inf', now - tonumber(a.ttl_ms) * 4)
local marked_until = redis.call('HGET', key, 'draining_until')
local is_marked = marked_until and now < tonumber(marked_until)
if (a.state == 'ready' or a.state == 'busy') and not is_marked then
  redis.call('ZADD', slots_key(a.pool), now + tonumber(a.ttl_ms), a.worker)
  dispatch(a.pool)
else
  redis.call('ZREM', slots_key(a.pool), a.worker)
end
redis.call('ZREMRANGEBYSCORE', slots_key(a.pool), '-inf', now - tonumber(a.ttl_ms) * 4)
return 'ok'
