-- epoch: whether Redis came back with less than it had. `beats`, `epoch` and `at` are what SQL has of it; the ledger has as
-- many beats or more, unless a restart, a failover or a restore made it lose what it wrote: then a new epoch begins, and
-- the loss stays noted until it is acknowledged. There are several writes on purpose: Redis keeps those of one script as
-- a transaction, as it keeps those of jobs, and loses them alike. Answers epoch, beats, at, and the loss.
may_always_run()
local key = P .. ':epoch'
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
