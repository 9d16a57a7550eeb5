-- Reads a delivery at one moment, for the audit: its record, and the sets that list it. `target`: the target whose
-- deliveries to search, where they list a delivery that has no record. The order is that of `audit.py`.
local key = delivery_key(a.delivery)
local rec = redis.call('HMGET', key, 'state', 'job', 'target')
local target = a.target or rec[3] or ''
return {
  rec,
  redis.call('ZSCORE', deliveries_key(target), a.delivery),
  redis.call('ZSCORE', targets_key, target),
  rec[2] and redis.call('ZSCORE', deliveries_of_key(rec[2]), a.delivery),
  redis.call('PTTL', key),
}
