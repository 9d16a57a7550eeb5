-- Makes a leased entry due again in `delay_ms`, because the other side refused it. The record keeps which lease that
-- was, so that a sink that refuses can be distinguished from one that accepts and loses events.
allow_at_maxmemory()
local record = leased_record(a.kind, a.job)
local leases = redis.call('HGET', record, a.kind .. '_takes')
if leases and redis.call('ZSCORE', lease_queues[a.kind], a.job) then
  redis.call('HSET', record, a.kind .. '_refused', leases)
end
return redis.call('ZADD', lease_queues[a.kind], 'XX', 'CH', now + tonumber(a.delay_ms), a.job)
