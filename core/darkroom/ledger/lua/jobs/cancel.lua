-- pending → cancelled at once (`dequeued`), without a worker too; running: a mark that the worker sees at its next step
-- (`interrupting`) and after which `cancelled` is the only outcome; the same mark in a state of a later version.
-- `too_late` for a job in another terminal state. Repeatable.
allow_at_maxmemory()
local key = job_key(a.job)
local rec = redis.call('HMGET', key, 'state', 'tenant', 'pool', 'cancel_receipt')
if not rec[1] or (a.tenant and rec[2] ~= a.tenant) then return {'unknown'} end
if rec[4] then return {rec[4], rec[1]} end
if is_terminal(rec[1]) then return {'too_late', rec[1]} end
redis.call('HSET', key, 'cancel', now)
if rec[1] == 'pending' then
  redis.call('HSET', key, 'cancel_receipt', 'dequeued')
  finish_job(a.job, rec[3], 'cancelled', CANCELLED)
  return {'dequeued', 'cancelled'}
end
redis.call('HSET', key, 'cancel_receipt', 'interrupting')
log(a.job, 'cancelling', rec[1], '{}')
return {'interrupting', rec[1]}
