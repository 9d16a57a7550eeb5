-- pending → expired, by the courier: the start deadline passed. It applies to the first attempt only (`claim` removes
-- it). Returns the ids that expired.
allow_at_maxmemory()
local late = redis.call('ZRANGEBYSCORE', deadlines_key, '-inf', now, 'LIMIT', 0, a.limit)
for _, id in ipairs(late) do
  if has_record(id, deadlines_key) then
    redis.call('ZREM', deadlines_key, id)
    finish_job(id, redis.call('HGET', job_key(id), 'pool'), 'expired',
      failure('deadline', 'not started before its start deadline'))
  end
end
return late
