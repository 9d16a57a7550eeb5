-- defer: an entry that was taken is due again in `delay_ms`, because the other side did not take it. The record keeps which
-- take that was, so that a sink that refuses can be told from one that takes and forgets.
may_always_run()
local record = outward_record(a.kind, a.job)
local takes = redis.call('HGET', record, a.kind .. '_takes')
if takes and redis.call('ZSCORE', outward[a.kind], a.job) then
  redis.call('HSET', record, a.kind .. '_refused', takes)
end
return redis.call('ZADD', outward[a.kind], 'XX', 'CH', now + tonumber(a.delay_ms), a.job)
