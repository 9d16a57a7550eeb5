-- Records an attempt to deliver, by the courier that holds the delivery's token: `delivered`, `failed` (again in
-- `again_ms` or, without that, given up), `gone` (410: the receiver wants no more events), or `put_off` (no attempt was
-- made). `pause_ms` pauses all posts to its target. A subscription without a successful delivery for `failing_limit_ms`
-- is disabled, one that is gone has ended; both go to the notices. Returns what follows, or `lost`; a repeated call
-- returns the same.
allow_at_maxmemory()
local KEPT_TRIES = 20 -- the last ones; a schedule has ten, and a client may restart it
local key = delivery_key(a.delivery)
local rec = redis.call('HMGET', key, 'state', 'token', 'target', 'recipient', 'settled_token', 'settled_answer', 'job')
if rec[5] == a.token then return rec[6] end
local is_holder = rec[2] == a.token
-- A successful delivery counts, even if the courier was so slow that another one leased it meanwhile.
if rec[1] ~= 'open' or not is_holder and a.outcome ~= 'delivered' then return 'lost' end
local target = rec[3]

local function again(delay_ms)
  redis.call('HDEL', key, 'token')
  redis.call('ZREM', leased_key(target), a.delivery)
  redis.call('ZADD', deliveries_key(target), now + tonumber(delay_ms), a.delivery)
  schedule_target(target)
  return 'again'
end

local function leave_subscription(state, reason)
  local subscription = subscription_key(rec[4])
  if redis.call('HGET', subscription, 'state') ~= 'enabled' then return false end
  redis.call('HSET', subscription, 'state', state, 'reason', reason, 'changed', now)
  redis.call('SREM', start_subscriptions_key(redis.call('HGET', subscription, 'tenant')), rec[4])
  redis.call('ZADD', notices_key, now, rec[4])
  redis.call('PUBLISH', wake_channel, 'deliveries')
  return true
end

local function follow()
  if a.outcome == 'put_off' then return again(a.again_ms) end
  local number = redis.call('HINCRBY', key, 'tried', 1)
  redis.call('HSET', key, 'try:' .. number,
    string.format('%.0f', now) .. '\n' .. a.took_ms .. '\n' .. (a.status or '') .. '\n' .. (a.error or ''))
  redis.call('HDEL', key, 'try:' .. (number - KEPT_TRIES))
  if a.outcome == 'delivered' then
    redis.call('HDEL', target_key(target), 'failures')
  else
    redis.call('HINCRBY', target_key(target), 'failures', 1)
  end
  if tonumber(a.pause_ms) > 0 then
    local paused = tonumber(redis.call('HGET', target_key(target), 'paused_until') or 0)
    redis.call('HSET', target_key(target), 'paused_until', math.max(paused, now + tonumber(a.pause_ms)))
  end
  redis.call('PEXPIRE', target_key(target), TARGET_TTL_MS)

  local subscription = rec[4] ~= 'job' and redis.call('EXISTS', subscription_key(rec[4])) == 1
    and subscription_key(rec[4])
  if a.outcome == 'delivered' then
    if subscription then redis.call('HDEL', subscription, 'failing_since') end
    close_delivery(a.delivery, 'delivered')
    return 'delivered'
  end
  if a.outcome == 'gone' then
    close_delivery(a.delivery, 'given_up', 'the receiver answered 410')
    if subscription and leave_subscription('ended', 'its receiver answered 410') then return 'ended' end
    return 'given_up'
  end
  if subscription then
    redis.call('HSETNX', subscription, 'failing_since', now)
    local since = tonumber(redis.call('HGET', subscription, 'failing_since'))
    if now - since >= tonumber(a.failing_limit_ms)
      and leave_subscription('disabled', 'no delivery succeeded for too long') then
      close_delivery(a.delivery, 'given_up', 'its subscription is disabled')
      return 'disabled'
    end
  end
  if a.again_ms then return again(a.again_ms) end
  close_delivery(a.delivery, 'given_up', 'all attempts failed')
  return 'given_up'
end

local answer = follow()
redis.call('HSET', key, 'settled_token', a.token, 'settled_answer', answer)
if redis.call('HDEL', key, 'followed') == 1 then
  -- Later events of the job waited for this attempt (`lease_deliveries.lua`).
  local seq, recipient = delivery_parts(a.delivery)
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', deliveries_of_key(rec[7]), 1, 1)) do
    local its_seq, its_recipient = delivery_parts(other)
    if its_recipient == recipient and its_seq > seq then
      local its_target = redis.call('HGET', delivery_key(other), 'target')
      if not redis.call('ZSCORE', leased_key(its_target), other) then
        redis.call('ZADD', deliveries_key(its_target), 'XX', now, other)
        schedule_target(its_target)
      end
    end
  end
end
return answer
