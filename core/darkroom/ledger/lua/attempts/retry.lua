-- running → pending after `delay_ms`, by the worker that holds the token: the attempt failed and counts. At the limit
-- of attempts the job fails with this error and is a dead letter; a recorded cancellation makes it cancelled. `error`
-- is JSON text: {"kind":…,"message":…}.
allow_at_maxmemory()
local key = job_key(a.job)
local rec = redis.call('HMGET', key, 'state', 'token', 'pool', 'cancel', 'ended_token', 'ended_answer', 'max_attempts',
  'attempt', 'worker')
if not rec[1] or rec[1] ~= 'running' or rec[2] ~= a.token then
  if rec[5] == a.token and rec[6] ~= 'lost' then return rec[6] end
  redis.call('HINCRBY', counters_key, 'stale_retry', 1)
  return 'lost'
end
local pool = rec[3]
release_lease(a.job, pool)
local counted = redis.call('HINCRBY', key, 'counted', 1)
if rec[4] then
  finish_job(a.job, pool, 'cancelled', CANCELLED)
  return record_reply(a.job, a.token, 'cancelled')
end
if counted >= tonumber(rec[7]) then
  finish_as_dead_letter(a.job, pool, '{"error":' .. a.error .. '}')
  return record_reply(a.job, a.token, 'failed')
end
local not_before = now + tonumber(a.delay_ms)
redis.call('HDEL', key, 'step', 'steps')
redis.call('HSET', key, 'state', 'pending', 'progress', 0, 'not_before', not_before)
redis.call('ZADD', due_key(pool), not_before, a.job)
add_to_counts(a.job, 1, 0, 0, 0)
log(a.job, 'retried', 'pending', '{"error":' .. a.error .. ',"attempt":' .. rec[8] .. ',"worker":'
  .. cjson.encode(rec[9] or '') .. ',"not_before":' .. string.format('%.0f', not_before) .. '}')
local job = queued_job(a.job, pool)
apply_limits(job, scopes_of(job))
dispatch(pool)
return record_reply(a.job, a.token, 'pending')
