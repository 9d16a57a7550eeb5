-- keep: a CloudEvent that Knative gave up on. `event` is made of its tenant, source and id, so the same event is kept once,
-- as it failed last. Of all there are, the newest stay: at most `most`, and no more than `most_bytes` hold, this one beside.
-- Answers how many had to go.
may_always_run()
local key = undelivered_key(a.event)
local rec = redis.call('HMGET', key, 'bytes', 'first')
redis.call('HDEL', key, 'replayed', 'data')
redis.call('HSET', key, 'tenant', a.tenant, 'attributes', a.attributes, 'failure', a.failure, 'bytes', a.bytes,
  'first', rec[2] or now, 'last', now)
if a.data then redis.call('HSET', key, 'data', a.data) end
redis.call('ZADD', undelivered_by_tenant_key(a.tenant), now, a.event)
redis.call('ZADD', undelivered_by_age_key, now, a.event)
local bytes = redis.call('HINCRBY', counters_key, 'undelivered_bytes', tonumber(a.bytes) - tonumber(rec[1] or 0))
local count, gone = redis.call('ZCARD', undelivered_by_age_key), 0
while count > 1 and (count > tonumber(a.most) or bytes > tonumber(a.most_bytes)) do
  local oldest = redis.call('ZRANGE', undelivered_by_age_key, 0, 1)
  bytes = discard_undelivered(oldest[1] == a.event and oldest[2] or oldest[1])
  count, gone = count - 1, gone + 1
end
return gone
