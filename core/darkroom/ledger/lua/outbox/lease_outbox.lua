-- take: up to `limit` due entries of one kind of outward work (`relay`: the outbox; `history`; `notice`), each under a
-- lease: nobody else gets it for `lease_ms`, doubled up to 64-fold with each take that came to nothing. One that the
-- other side refused is not such a take: the entry was put off for that (`defer`). `call` names the call: a repeated one
-- gets the same entries. An entry leaves only when its work is done (`applied`, `archived`, `noticed`), or is put forward
-- or back by `defer`.
may_always_run()
local queue = outward[a.kind]
local taken = P .. ':taken:' .. a.kind .. ':' .. a.taker
local before = redis.call('HMGET', taken, 'call', 'ids')
if before[1] == a.call then return cjson.decode(before[2]) end
local ids = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, a.limit)) do
  local record = outward_record(a.kind, id)
  if redis.call('HEXISTS', record, 'id') == 1 then
    local n = redis.call('HINCRBY', record, a.kind .. '_takes', 1)
    local refused = tonumber(redis.call('HGET', record, a.kind .. '_refused') or 0)
    redis.call('ZADD', queue, now + tonumber(a.lease_ms) * 2 ^ math.min(n - refused - 1, 6), id)
    ids[#ids + 1] = id
  else
    redis.call('ZREM', queue, id) -- somebody removed the record: nothing is left to tell
  end
end
if #ids > 0 then
  redis.call('HSET', taken, 'call', a.call, 'ids', cjson.encode(ids))
  redis.call('PEXPIRE', taken, a.lease_ms)
end
return ids
