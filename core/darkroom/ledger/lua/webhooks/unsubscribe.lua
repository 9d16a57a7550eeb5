-- unsubscribe: a subscription goes. What is still to be delivered to it is given up when it is due (`deliver`). Answers
-- whether there was one of this tenant's.
may_always_run()
local key = subscription_key(a.subscription)
if redis.call('HGET', key, 'tenant') ~= a.tenant then return 0 end
redis.call('DEL', key)
redis.call('ZREM', subscriptions_key(a.tenant), a.subscription)
redis.call('SREM', starters_key(a.tenant), a.subscription)
redis.call('ZREM', notices_key, a.subscription)
return 1
