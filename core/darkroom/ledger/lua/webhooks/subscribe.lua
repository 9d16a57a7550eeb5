-- Registers an address (`create`), or changes fields of a registered one: a field that is absent stays. Enabling a
-- subscription deletes the reason why it was disabled. Returns `created`, `changed`, `unknown` (the tenant has no such
-- subscription), `full` (the tenant has `most`) or `target_full` (`most_per_target` of them lead to the same target, so
-- that each event of a job would go there as often).
allow_at_maxmemory()
local key = subscription_key(a.subscription)
local rec = redis.call('HMGET', key, 'tenant', 'state', 'target')

local function is_target_full()
  local count = 0
  for _, id in ipairs(redis.call('ZRANGE', subscriptions_key(a.tenant), 0, -1)) do
    if redis.call('HGET', subscription_key(id), 'target') == a.target then count = count + 1 end
  end
  return count >= tonumber(a.most_per_target)
end

if not rec[1] then
  if not a.create then return 'unknown' end
  if redis.call('ZCARD', subscriptions_key(a.tenant)) >= tonumber(a.most) then return 'full' end
  if is_target_full() then return 'target_full' end
  redis.call('HSET', key, 'v', 1, 'id', a.subscription, 'tenant', a.tenant, 'created', now, 'generation', 1)
  redis.call('ZADD', subscriptions_key(a.tenant), 0, a.subscription)
elseif rec[1] ~= a.tenant then
  return 'unknown'
elseif a.create then
  return 'created'
elseif a.target and a.target ~= rec[3] and is_target_full() then
  return 'target_full'
end

for _, name in ipairs({'url', 'target', 'events', 'models'}) do
  if a[name] then redis.call('HSET', key, name, a[name]) end
end
if a.state == 'enabled' and rec[2] ~= 'enabled' then
  redis.call('HSET', key, 'state', 'enabled', 'changed', now)
  redis.call('HDEL', key, 'reason', 'failing_since')
  redis.call('ZREM', notices_key, a.subscription)
elseif a.state == 'disabled' and (not rec[2] or rec[2] == 'enabled') then
  redis.call('HSET', key, 'state', 'disabled', 'changed', now, 'reason', 'disabled by its owner')
end
local is = redis.call('HMGET', key, 'state', 'events')
if is[1] == 'enabled' and has_word(is[2], 'started') then
  redis.call('SADD', start_subscriptions_key(a.tenant), a.subscription)
else
  redis.call('SREM', start_subscriptions_key(a.tenant), a.subscription)
end
return rec[1] and 'changed' or 'created'
