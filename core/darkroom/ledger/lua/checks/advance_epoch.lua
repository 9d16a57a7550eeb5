-- Detects that Redis came back with less data than it had. `beats`, `epoch` and `at` are what SQL recorded. The ledger
-- has as many beats or more, unless a restart, a failover or a restore lost what it wrote: then a new epoch begins, and
-- the loss stays recorded until it is acknowledged. There are several writes on purpose: Redis persists the writes of
-- one script as a transaction, as it does those of jobs, and loses them alike. Returns epoch, beats, at, and the loss.
allow_at_maxmemory()
local key = epoch_key
local rec = redis.call('HMGET', key, 'epoch', 'beats', 'at', 'lost_from', 'lost_to')
local epoch, beats, at = tonumber(rec[1] or 1), tonumber(rec[2] or 0), tonumber(rec[3] or 0)
local known = tonumber(a.beats)
if beats < known then
  epoch = math.max(epoch, tonumber(a.epoch)) + 1
  redis.call('HSET', key, 'lost_from', math.min(at, tonumber(rec[4] or at)), 'lost_to', a.at)
end
redis.call('HSET', key, 'epoch', epoch)
redis.call('HSET', key, 'beats', math.max(beats, known + 1), 'at', now)
if a.acknowledge then redis.call('HDEL', key, 'lost_from', 'lost_to') end
return redis.call('HMGET', key, 'epoch', 'beats', 'at', 'lost_from', 'lost_to')
