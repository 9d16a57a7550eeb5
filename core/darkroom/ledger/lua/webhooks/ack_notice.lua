-- Records that the sink accepted the notice of a subscription's state since `changed`. Returns whether that is still
-- its state; if not, the notice of the new state remains.
allow_at_maxmemory()
local changed = redis.call('HGET', subscription_key(a.subscription), 'changed')
if changed and changed ~= a.changed then return 0 end
redis.call('ZREM', notices_key, a.subscription)
return changed and 1 or 0
