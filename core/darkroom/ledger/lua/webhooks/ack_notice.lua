-- noticed: the sink has taken the notice of what a subscription has been since `changed`. Answers whether it is that still;
-- if not, the notice of what it is now stays.
may_always_run()
local changed = redis.call('HGET', subscription_key(a.subscription), 'changed')
if changed and changed ~= a.changed then return 0 end
redis.call('ZREM', notices_key, a.subscription)
return changed and 1 or 0
