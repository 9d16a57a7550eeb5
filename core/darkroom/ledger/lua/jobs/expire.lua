-- expire: pending → expired, by the courier: the start deadline passed. It binds the first attempt only (claim forgets
-- it). Answers the ids that expired.
may_always_run()
local late = redis.call('ZRANGEBYSCORE', deadlines_key, '-inf', now, 'LIMIT', 0, a.limit)
for _, id in ipairs(late) do
  if has_record(id, deadlines_key) then
    redis.call('ZREM', deadlines_key, id)
    end_job(id, redis.call('HGET', job_key(id), 'pool'), 'expired',
      failure('deadline', 'not started before its start deadline'))
  end
end
return late
