-- running, with token: extends the lease. Returns `ok`, `cancel` (requested; the lease holds) or `lost`.
allow_at_maxmemory()
local rec = redis.call('HMGET', job_key(a.job), 'state', 'token', 'pool', 'cancel')
if rec[1] ~= 'running' or rec[2] ~= a.token then return 'lost' end
local lease = now + tonumber(a.lease_ms)
redis.call('HSET', job_key(a.job), 'lease', lease)
redis.call('ZADD', running_key(rec[3]), lease, a.job)
return rec[4] and 'cancel' or 'ok'
