-- Stores a CloudEvent that Knative could not deliver. `event` derives from its tenant, source and id, so the same event
-- is stored once, with its last failure. At most `most` events of at most `most_bytes` in all are stored, this one
-- aside. Beyond a limit the group (tenant and source) with the most events, or bytes, loses its oldest: a source
-- displaces its own events before those of smaller groups. Returns how many were removed.
allow_at_maxmemory()
local key = undelivered_key(a.event)
local rec = redis.call('HMGET', key, 'bytes', 'first', 'group')
redis.call('HDEL', key, 'replayed', 'data')
redis.call('HSET', key, 'tenant', a.tenant, 'attributes', a.attributes, 'failure', a.failure, 'bytes', a.bytes,
  'first', rec[2] or now, 'last', now)
if a.data then redis.call('HSET', key, 'data', a.data) end
redis.call('ZADD', undelivered_by_tenant_key(a.tenant), now, a.event)
redis.call('ZADD', undelivered_by_age_key, now, a.event)
local added = tonumber(a.bytes) - tonumber(rec[1] or 0)
add_to_group(a.event, group_of(a.tenant, a.attributes), now, rec[3] and added or a.bytes)

-- Events that an earlier version stored have no group yet. They are the oldest: each call adds some of them to theirs.
for _, id in ipairs(redis.call('ZRANGE', undelivered_by_age_key, 0, MAX_ADDED - 1)) do
  local old = redis.call('HMGET', undelivered_key(id), 'group', 'tenant', 'attributes', 'last', 'bytes')
  if old[1] then break end
  if old[3] then
    add_to_group(id, group_of(old[2], old[3]), old[4], old[5])
  else
    remove_undelivered(id) -- its record was deleted by hand
  end
end

-- The event that is removed next, and its group: the oldest of all where no group is heavier than its own. Never this
-- event.
local function next_to_remove(weights)
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
local count, removed = redis.call('ZCARD', undelivered_by_age_key), 0
while count > 1 and (count > tonumber(a.most) or bytes > tonumber(a.most_bytes)) do
  local weights = count > tonumber(a.most) and undelivered_by_count_key or undelivered_by_bytes_key
  bytes = remove_undelivered(next_to_remove(weights))
  count, removed = count - 1, removed + 1
end
return removed
