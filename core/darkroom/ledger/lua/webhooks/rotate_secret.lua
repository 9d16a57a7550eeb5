-- rotate: the subscription's secret of `generation` is followed by the next. Answers the generation that is valid then, also
-- where that one was followed already, or 0 for a subscription that the tenant has not.
may_always_run()
local key = subscription_key(a.subscription)
local rec = redis.call('HMGET', key, 'tenant', 'generation')
if rec[1] ~= a.tenant then return 0 end
if rec[2] ~= a.generation then return tonumber(rec[2]) end
redis.call('HSET', key, 'rotated', now)
return redis.call('HINCRBY', key, 'generation', 1)
