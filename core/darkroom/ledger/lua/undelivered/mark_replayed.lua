-- mark_replayed: the sink took an undelivered event again, as it was kept at `last`. It stays listed. Answers `replayed`, or
-- `changed` where it has failed once more in the meantime, or is gone.
may_always_run()
local key = undelivered_key(a.event)
if redis.call('HGET', key, 'last') ~= a.last then return 'changed' end
redis.call('HSET', key, 'replayed', now)
return 'replayed'
