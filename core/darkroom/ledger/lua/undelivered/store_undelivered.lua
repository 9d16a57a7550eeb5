-- keep: a CloudEvent that Knative gave up on. `event` is made of its tenant, source and id, so the same event is kept once,
-- as it failed last. At most `most` events are kept, and no more than `most_bytes` hold, this one beside. Beyond a limit
-- the group (tenant and source) that has the most events, or bytes, loses its oldest: a source displaces its own events
-- before those of smaller groups. Returns how many had to go.
may_always_run()
local key = undelivered_key(a.event)
local rec = redis.call('HMGET', key, 'bytes', 'first', 'group')
redis.call('HDEL', key, 'replayed', 'data')
redis.call('HSET', key, 'tenant', a.tenant, 'attributes', a.attributes, 'failure', a.failure, 'bytes', a.bytes,
  'first', rec[2] or now, 'last', now)
if a.data then redis.call('HSET', key, 'data', a.data) end
redis.call('ZADD', undelivered_by_tenant_key(a.tenant), now, a.event)
redis.call('ZADD', undelivered_by_age_key, now, a.event)
local added = tonumber(a.bytes) - tonumber(rec[1] or 0)
join_undelivered(a.event, undelivered_group(a.tenant, a.attributes), now, rec[3] and added or a.bytes)

-- Events that an earlier version kept have no group yet. They are the oldest: each call lets some of them join theirs.
for _, id in ipairs(redis.call('ZRANGE', undelivered_by_age_key, 0, ADOPTED - 1)) do
  local old = redis.call('HMGET', undelivered_key(id), 'group', 'tenant', 'attributes', 'last', 'bytes')
  if old[1] then break end
  if old[3] then
    join_undelivered(id, undelivered_group(old[2], old[3]), old[4], old[5])
  else
    discard_undelivered(id) -- its record was deleted by hand
  end
end

-- The event that goes next, and its group: the oldest of all where no group is heavier than its own. Never this event.
local function next_to_go(weights)
  local oldest = redis.call('ZRANGE', undelivered_by_age_key, 0, 1)
  oldest = oldest[1] == a.event and oldest[2] or oldest[1]
  local own = redis.call('HGET', undelivered_key(oldest), 'group')
  local weight = own and tonumber(redis.call('ZSCORE', weights, own) or 0) or 0
  for _, group in ipairs(redis.call('ZREVRANGE', weights, 0, 1)) do -- the first may hold this event alone
    if tonumber(redis.call('ZSCORE', weights, group)) <= weight then break end
    for _, id in ipairs(redis.call('ZRANGE', undelivered_of_key(group), 0, 1)) do
      if id ~= a.event then return id, group end
    end
  end
  return oldest, own
end

local bytes = redis.call('HINCRBY', counters_key, 'undelivered_bytes', added)
local count, gone = redis.call('ZCARD', undelivered_by_age_key), 0
while count > 1 and (count > tonumber(a.most) or bytes > tonumber(a.most_bytes)) do
  local weights = count > tonumber(a.most) and undelivered_by_count_key or undelivered_by_bytes_key
  bytes = discard_undelivered(next_to_go(weights))
  count, gone = count - 1, gone + 1
end
return gone
