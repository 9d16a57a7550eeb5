-- Makes a delivery due now, with a new schedule. Returns `due`, `open` while it is being posted, `not_enabled` where
-- its subscription is not enabled, `unknown` for a delivery that the tenant's job does not have.
allow_at_maxmemory()
local key = delivery_key(a.delivery)
local rec = redis.call('HMGET', key, 'job', 'tenant', 'recipient', 'target', 'token', 'tried')
if rec[1] ~= a.job or rec[2] ~= a.tenant then return 'unknown' end
if rec[5] and tonumber(redis.call('ZSCORE', leased_key(rec[4]), a.delivery) or 0) > now then return 'open' end
if rec[3] ~= 'job' and redis.call('HGET', subscription_key(rec[3]), 'state') ~= 'enabled' then return 'not_enabled' end
redis.call('HSET', key, 'base', rec[6])
redis.call('HDEL', key, 'ended', 'reason')
open_delivery(a.delivery, a.job, rec[4])
redis.call('PUBLISH', wake_channel, 'deliveries')
return 'due'
