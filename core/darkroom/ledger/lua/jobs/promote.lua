-- pending (due) → pending (waiting), by the courier: jobs whose `not_before` has passed. Returns their ids.
allow_at_maxmemory()
local ready = redis.call('ZRANGEBYSCORE', due_key(a.pool), '-inf', now, 'LIMIT', 0, a.limit)
for _, id in ipairs(ready) do
  if has_record(id, due_key(a.pool)) then
    redis.call('ZREM', due_key(a.pool), id)
    redis.call('HDEL', job_key(id), 'not_before')
    redis.call('ZADD', waiting_key(a.pool), redis.call('HGET', job_key(id), 'order'), id)
  end
end
dispatch(a.pool)
return ready
