-- Deletes a subscription. Its open deliveries are given up when they are due (`lease_deliveries`). Returns whether the
-- tenant had such a subscription.
allow_at_maxmemory()
local key = subscription_key(a.subscription)
if redis.call('HGET', key, 'tenant') ~= a.tenant then return 0 end
redis.call('DEL', key)
redis.call('ZREM', subscriptions_key(a.tenant), a.subscription)
redis.call('SREM', start_subscriptions_key(a.tenant), a.subscription)
redis.call('ZREM', notices_key, a.subscription)
return 1
