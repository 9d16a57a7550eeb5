-- Records that the sink accepted an undelivered event, as it was stored at `last`. It stays listed. Returns `replayed`,
-- or `changed` where it failed again in the meantime, or is gone.
allow_at_maxmemory()
local key = undelivered_key(a.event)
if redis.call('HGET', key, 'last') ~= a.last then return 'changed' end
redis.call('HSET', key, 'replayed', now)
return 'replayed'
