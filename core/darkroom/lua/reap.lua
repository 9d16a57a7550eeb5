-- reap: running jobs of a pool whose lease lapsed are given back, as release(worker_lost) does. After a gap of more than
-- `gap_ms` since its last run (Redis was away, or nobody swept) it reaps nothing for one lease: nobody could renew.
-- Answers the ids that were given back.
may_always_run()
local key = pool_key(a.pool)
local last, quiet = unpack(redis.call('HMGET', key, 'reaped', 'quiet_until'))
redis.call('HSET', key, 'reaped', now)
if not last or now - tonumber(last) > tonumber(a.gap_ms) then
  redis.call('HSET', key, 'quiet_until', now + tonumber(a.lease_ms))
  return {}
end
if quiet and now < tonumber(quiet) then return {} end
local lapsed = redis.call('ZRANGEBYSCORE', running_key(a.pool), '-inf', now - 1, 'LIMIT', 0, a.limit)
for _, id in ipairs(lapsed) do
  if has_record(id, running_key(a.pool)) then
    local token, worker = unpack(redis.call('HMGET', job_key(id), 'token', 'worker'))
    give_back(id, a.pool, 'worker_lost', true, 'no sign of life from worker ' .. (worker or ''))
    remember(id, token, 'lost') -- what the holder of the token is told, should it come back
    redis.call('HINCRBY', counters_key, 'reaped', 1)
  end
end
return lapsed
