-- running → completed, failed or cancelled, by the worker that holds the token. A recorded cancellation makes the job
-- cancelled, whatever the outcome. Only this script publishes artifacts (they are in `data`). A stale token is refused
-- and counted. `images`: how many images the result has; a worker of an earlier version does not report it.
allow_at_maxmemory()
local key = job_key(a.job)
local rec = redis.call('HMGET', key, 'state', 'token', 'pool', 'cancel', 'ended_token', 'ended_answer',
  'attempt_started', 'images', 'model')
if not rec[1] or rec[1] ~= 'running' or rec[2] ~= a.token then
  if rec[5] == a.token and rec[6] ~= 'lost' then return rec[6] end
  redis.call('HINCRBY', counters_key, 'stale_finish', 1)
  return 'lost'
end
local outcome, data, pool = a.outcome, a.data, rec[3]
if rec[4] then
  outcome, data = 'cancelled', CANCELLED
elseif outcome == 'cancelled' then
  return redis.error_reply('ERR cancellation of job ' .. a.job .. ' was not requested')
end
-- The pool's time between two finished jobs, smoothed, for the Retry-After of a full backlog.
local last, interval = unpack(redis.call('HMGET', pool_key(pool), 'last_end', 'end_interval'))
if last then
  local gap = math.max(0, now - tonumber(last))
  redis.call('HSET', pool_key(pool), 'end_interval', string.format('%.1f', (tonumber(interval or gap) * 9 + gap) / 10))
end
redis.call('HSET', pool_key(pool), 'last_end', now)
-- The duration of a completed job, smoothed, for the operator's estimates; and that of its model, for its cost.
local took = math.max(0, now - tonumber(rec[7]))
if outcome == 'completed' then
  local of_model = 'service_ms ' .. rec[9]
  local before = redis.call('HMGET', pool_key(pool), 'service_ms', of_model)
  local function smoothed(mean) return string.format('%.1f', (tonumber(mean or took) * 9 + took) / 10) end
  redis.call('HSET', pool_key(pool), 'service_ms', smoothed(before[1]), of_model, smoothed(before[2]))
end
-- The model's duration per image, smoothed, for the GPU time that jobs reserve.
local images = outcome == 'completed' and tonumber(a.images or rec[8] or 0) or 0
if images > 0 then
  local each, before = took / images, redis.call('HGET', pool_key(pool), 'image_ms ' .. rec[9])
  local mean = (tonumber(before or each) * 9 + each) / 10
  redis.call('HSET', pool_key(pool), 'image_ms ' .. rec[9], string.format('%.1f', mean))
end
release_lease(a.job, pool)
finish_job(a.job, pool, outcome, data, images)
if outcome == 'completed' then redis.call('HSET', key, 'progress', 100) end
return record_reply(a.job, a.token, outcome)
