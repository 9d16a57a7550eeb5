-- permit: the receiver at a target was asked for its consent, and granted `rate` requests a minute, or named no rate.
may_always_run()
local key = target_key(a.target)
redis.call('HSET', key, 'validated', now)
if a.rate then redis.call('HSET', key, 'rate', a.rate) else redis.call('HDEL', key, 'rate', 'next_at') end
redis.call('PEXPIRE', key, TARGET_TTL_MS)
schedule(a.target)
return 'ok'
