-- pending (due) → pending (waiting or held), by the courier: jobs whose `not_before` has passed. Returns their ids.
allow_at_maxmemory()
local ready = redis.call('ZRANGEBYSCORE', due_key(a.pool), '-inf', now, 'LIMIT', 0, a.limit)
for _, id in ipairs(ready) do
  if has_record(id, due_key(a.pool)) then
    redis.call('ZREM', due_key(a.pool), id)
    redis.call('HDEL', job_key(id), 'not_before')
    local job = queued_job(id, a.pool)
    enqueue(job, scopes_of(job))
  end
end
dispatch(a.pool)
return ready
