-- Records that the receiver at a target gave its consent, and granted `rate` requests per minute, or named no rate.
allow_at_maxmemory()
local key = target_key(a.target)
redis.call('HSET', key, 'validated', now)
if a.rate then redis.call('HSET', key, 'rate', a.rate) else redis.call('HDEL', key, 'rate', 'next_at') end
redis.call('PEXPIRE', key, TARGET_TTL_MS)
schedule_target(a.target)
return 'ok'
