-- Leases up to `limit` due deliveries to `owner`, a courier: no other gets them for `lease_ms`. Targets take turns, and
-- each has `per_target` leases at most; only one while it failed lately, or has not given its consent, so that a
-- receiver that hangs holds few slots. `call` identifies the call: a repeated one returns the same deliveries. What is
-- due to a subscription that is not enabled any more is given up; one with a new address gets it there. A recipient
-- gets the events of one job in order: a later one waits while an earlier one is posted, and gives up an earlier one
-- that is not due now.
allow_at_maxmemory()
local SUSPECT = 3                       -- failures in a row, after which a target gets one delivery at a time
local PERMIT_TTL_MS = 24 * 3600 * 1000  -- how long a consent is relied on
local reply_key = lease_reply_key('delivery', a.owner)
local before = redis.call('HMGET', reply_key, 'call', 'rows')
if before[1] == a.call then return cjson.decode(before[2]) end

-- Whether this delivery may be posted although an earlier event of the same job to the same recipient is open. An
-- earlier one that is being posted, or is due before it, comes first; one that waits for another attempt is given up.
local function is_next(id, job, seq, recipient, target)
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', deliveries_of_key(job), 1, 1)) do
    local its_seq, its_recipient = delivery_parts(other)
    if its_recipient == recipient and its_seq < tonumber(seq) then
      local its_target, is_held = unpack(redis.call('HMGET', delivery_key(other), 'target', 'held'))
      local lapses = tonumber(redis.call('ZSCORE', leased_key(its_target), other) or 0)
      local due = tonumber(redis.call('ZSCORE', deliveries_key(its_target), other) or 0)
      if lapses > now or its_target == target and (is_held or due <= now) then
        redis.call('HSET', delivery_key(other), 'followed', 1)
        redis.call('HSET', delivery_key(id), 'held', 1)
        redis.call('ZADD', deliveries_key(target), math.max(lapses, due) + 1, id)
        return false
      end
      close_delivery(other, 'given_up', 'overtaken by a later event of the job')
    end
  end
  return true
end

local function lease(id, target, is_permitted)
  local key = delivery_key(id)
  local it = redis.call('HMGET', key, 'job', 'seq', 'event', 'recipient', 'tenant', 'url', 'state', 'tried', 'base')
  if it[7] ~= 'open' then
    redis.call('ZREM', deliveries_key(target), id)
    return nil
  end
  local url, generation, rotated = it[6], '0', '0'
  if it[4] ~= 'job' then
    local to = redis.call('HMGET', subscription_key(it[4]), 'state', 'url', 'target', 'generation', 'rotated')
    if to[1] ~= 'enabled' then
      close_delivery(id, 'given_up', to[1] and 'its subscription is ' .. to[1] or 'its subscription was deleted')
      return nil
    end
    url, generation, rotated = to[2], to[4], to[5] or '0'
    redis.call('HSET', key, 'url', url)
    if to[3] ~= target then
      redis.call('ZREM', deliveries_key(target), id)
      open_delivery(id, it[1], to[3])
      return nil
    end
  end
  if not is_next(id, it[1], it[2], it[4], target) then return nil end
  local lapses = now + tonumber(a.lease_ms)
  redis.call('ZADD', deliveries_key(target), lapses, id)
  redis.call('ZADD', leased_key(target), lapses, id)
  redis.call('HSET', key, 'token', a.call)
  redis.call('HDEL', key, 'held')
  local number = tonumber(it[8]) + 1
  return {id, it[1], it[2], it[3], it[4], it[5], url, target, tostring(number), tostring(number - tonumber(it[9])),
    generation, rotated, is_permitted and '1' or '0'}
end

local rows, limit = {}, tonumber(a.limit)
for _, target in ipairs(redis.call('ZRANGEBYSCORE', targets_key, '-inf', now, 'LIMIT', 0, limit)) do
  if #rows >= limit then break end
  local about = redis.call('HMGET', target_key(target), 'failures', 'validated', 'rate', 'next_at')
  local is_permitted = about[2] and now - about[2] < PERMIT_TTL_MS
  local most = tonumber(a.per_target)
  if not is_permitted or tonumber(about[1] or 0) >= SUSPECT then most = 1 end
  redis.call('ZREMRANGEBYSCORE', leased_key(target), '-inf', now)
  local room = most - redis.call('ZCARD', leased_key(target))
  local rate = about[3] or a.rate -- the courier's own for a receiver that granted none
  local interval, next_at = nil, math.max(now, tonumber(about[4] or 0))
  local places = math.min(room, limit - #rows)
  if rate then
    interval = (60000 + RATE_BURST_MS) / tonumber(rate) -- no minute has more than was granted, burst included
    places = math.min(places, math.floor((now + RATE_BURST_MS - next_at) / interval) + 1)
  end
  if places > 0 then
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', deliveries_key(target), '-inf', now, 'LIMIT', 0, places)) do
      local row = lease(id, target, is_permitted)
      if row then
        rows[#rows + 1] = row
        room = room - 1
        if interval then next_at = next_at + interval end
      end
    end
    redis.call('HSET', target_key(target), 'served', now)
    if interval then redis.call('HSET', target_key(target), 'next_at', math.ceil(next_at)) end
    redis.call('PEXPIRE', target_key(target), TARGET_TTL_MS)
  end
  schedule_target(target)
  if room <= 0 then
    -- Full: scheduled again when an attempt is recorded, or its lease ends.
    local lapses = redis.call('ZRANGE', leased_key(target), 0, 0, 'WITHSCORES')[2]
    if lapses then redis.call('ZADD', targets_key, 'XX', lapses, target) end
  end
end
redis.call('HSET', reply_key, 'call', a.call, 'rows', cjson.encode(rows))
redis.call('PEXPIRE', reply_key, a.lease_ms)
return rows
