-- Replaces the subscription's secret of `generation` by the next one. Returns the generation that is valid then, also
-- where it was replaced already, or 0 for a subscription that the tenant does not have.
allow_at_maxmemory()
local key = subscription_key(a.subscription)
local rec = redis.call('HMGET', key, 'tenant', 'generation')
if rec[1] ~= a.tenant then return 0 end
if rec[2] ~= a.generation then return tonumber(rec[2]) end
redis.call('HSET', key, 'rotated', now)
return redis.call('HINCRBY', key, 'generation', 1)
