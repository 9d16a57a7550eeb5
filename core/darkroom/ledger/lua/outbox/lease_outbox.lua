-- Leases up to `limit` due entries of one queue of the outbox (`kind`: `relay`, `history` or `notice`) to `owner`: no
-- other process gets them for `lease_ms`, doubled up to 64-fold with each lease without a result. One that the other
-- side refused does not count: the entry was rescheduled (`reschedule`). `call` identifies the call: a repeated one
-- returns the same entries. An entry leaves only when its work is done (`mark_applied`, `mark_archived`, `ack_notice`).
allow_at_maxmemory()
local queue = lease_queues[a.kind]
local reply_key = lease_reply_key(a.kind, a.owner)
local before = redis.call('HMGET', reply_key, 'call', 'ids')
if before[1] == a.call then return cjson.decode(before[2]) end
local ids = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, a.limit)) do
  local record = leased_record(a.kind, id)
  if redis.call('HEXISTS', record, 'id') == 1 then
    local n = redis.call('HINCRBY', record, a.kind .. '_takes', 1)
    local refused = tonumber(redis.call('HGET', record, a.kind .. '_refused') or 0)
    redis.call('ZADD', queue, now + tonumber(a.lease_ms) * 2 ^ math.min(n - refused - 1, 6), id)
    ids[#ids + 1] = id
  else
    redis.call('ZREM', queue, id) -- the record was removed by hand: there is nothing to publish
  end
end
if #ids > 0 then
  redis.call('HSET', reply_key, 'call', a.call, 'ids', cjson.encode(ids))
  redis.call('PEXPIRE', reply_key, a.lease_ms)
end
return ids
