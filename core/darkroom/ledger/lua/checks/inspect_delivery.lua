-- inspect_delivery: reads, for the audit, a delivery at one moment: what its record says, and where it is. `target`: whose
-- due deliveries to look in, where they name a delivery that has no record. The order is that of `audit.py`.
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
