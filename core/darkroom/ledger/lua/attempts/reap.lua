-- Requeues running jobs of a pool whose lease lapsed, as release(worker_lost) does. Where this run is more than
-- `gap_ms` later than the pace of earlier ones (Redis was unavailable, or no courier ran), no worker could renew its
-- lease: nothing is reaped for the length of one lease. Runs that are always far apart, as those of a courier with a
-- slow connection, are no such gap. Returns the ids that were requeued.
allow_at_maxmemory()
local key = pool_key(a.pool)
local last, quiet, pause, pace = unpack(redis.call('HMGET', key, 'reaped', 'quiet_until', 'reap_pause', 'reap_pace'))
local this_pause = last and now - tonumber(last) or 0
redis.call('HSET', key, 'reaped', now)
if this_pause > 0 then -- the pace is the shorter one of the last two pauses, so that an outage does not count
  redis.call('HSET', key, 'reap_pause', this_pause, 'reap_pace', math.min(this_pause, pause or this_pause))
end
if not last or this_pause < 0 or this_pause > tonumber(a.gap_ms) + math.min(pace or 0, a.lease_ms) then
  redis.call('HSET', key, 'quiet_until', now + tonumber(a.lease_ms))
  return {}
end
if quiet and now < tonumber(quiet) then return {} end
local lapsed = redis.call('ZRANGEBYSCORE', running_key(a.pool), '-inf', now - 1, 'LIMIT', 0, a.limit)
for _, id in ipairs(lapsed) do
  if has_record(id, running_key(a.pool)) then
    local token, worker = unpack(redis.call('HMGET', job_key(id), 'token', 'worker'))
    release_job(id, a.pool, 'worker_lost', true, 'no sign of life from worker ' .. (worker or ''))
    record_reply(id, token, 'lost') -- the reply to the holder of the token, should it return
    redis.call('HINCRBY', counters_key, 'reaped', 1)
  end
end
return lapsed
