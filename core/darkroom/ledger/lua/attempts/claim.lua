-- pending → running, by a worker that received the job's message. The message is a hint and the record decides: every
-- message is dropped but that of a job that may run now. A job above a running limit is held, and may not. The job runs
-- with the input of its record. A repeated call with the same token returns the same reply. For a canary, the worker's
-- name is recorded. Where a webhook subscribes to `started`, the event goes to the outbox. `v` is the latest record
-- version that the worker knows: a job of a later one, as during an upgrade, is requeued for another worker.
allow_at_maxmemory()
local key = job_key(a.job)
local rec = redis.call('HMGET', key, 'state', 'pool', 'token', 'attempt', 'start_deadline', 'not_before', 'created',
  'run_timeout', 'started', 'counted', 'tenant', 'webhook_events', PENDING_STARTS, 'v',
  'held')
local function run(attempt)
  local model, input = unpack(redis.call('HMGET', key, 'model', 'input'))
  return {'run', tostring(attempt), rec[7], rec[8], rec[10], rec[11], model, input}
end
local state, pool = rec[1], rec[2]
if not state then
  if redis.call('EXISTS', canary_key(a.job)) == 0 then return {'drop', 'unknown'} end
  redis.call('HSET', canary_key(a.job), 'worker', a.worker)
  return {'drop', 'canary'}
end
if is_terminal(state) then return {'drop', 'terminal'} end
if state == 'running' then
  if rec[3] == a.token then return run(rec[4]) end
  return {'drop', 'leased'}
end
if redis.call('HGET', key, 'ended_token') == a.token then return {'drop', 'ended'} end

if rec[5] and tonumber(rec[4]) == 0 and now >= tonumber(rec[5]) then
  finish_job(a.job, pool, 'expired', failure('deadline', 'not started before its start deadline'))
  return {'drop', 'expired'}
end
if rec[6] and now < tonumber(rec[6]) then return {'drop', 'early'} end
if rec[15] then return {'drop', 'held'} end
if rec[6] then -- due: the limits apply before it may run
  local due = queued_job(a.job, pool)
  local limits = scopes_of(due)
  if #limits > 0 and redis.call('ZREM', due_key(pool), a.job) == 1 then
    redis.call('HDEL', key, 'not_before')
    if not enqueue(due, limits) then return {'drop', 'held'} end
  end
end

local draining = redis.call('HGET', worker_key(a.worker), 'draining_until')
local why = draining and now < tonumber(draining) and 'draining' or tonumber(rec[14] or 0) > tonumber(a.v) and 'newer'
if why then
  if redis.call('HGET', key, 'put_back_token') == a.token then return {'drop', why} end -- a repeated call
  redis.call('HSET', key, 'put_back_token', a.token)
  remove_from_queues(a.job, pool)
  requeue(a.job, pool)
  if rec[5] and tonumber(rec[4]) == 0 then redis.call('ZADD', deadlines_key, rec[5], a.job) end
  return {'drop', why}
end

local job, scopes = remove_from_queues(a.job, pool)
if job.order then
  local class = class_of(job.order)
  advance_virtual_time(pool, class, job.order - class * CLASS)
  if job.user then advance_virtual_time(pool, users_queue(class, job.tenant), job.line - class * CLASS) end
end
for _, scope in ipairs(scopes) do redis.call('SADD', running_of_key(scope.name), a.job) end
add_to_counts(a.job, -1, 0, 0, 0)
local lease = now + tonumber(a.lease_ms)
local attempt = redis.call('HINCRBY', key, 'attempt', 1)
redis.call('HDEL', key, 'not_before', 'op', 'step', 'steps', 'missed')
redis.call('HSET', key, 'state', 'running', 'token', a.token, 'worker', a.worker, 'lease', lease,
  'attempt_started', now, 'started', rec[9] or now, 'progress', 0)
redis.call('ZADD', running_key(pool), lease, a.job)
redis.call('HSET', busy_key, a.worker, a.job)
local seq = log(a.job, 'started', 'running', cjson.encode({attempt = attempt, worker = a.worker}))
if has_word(rec[12], 'started') or redis.call('EXISTS', start_subscriptions_key(rec[11])) == 1 then
  redis.call('HSET', key, PENDING_STARTS, (rec[13] and rec[13] .. ' ' or '') .. seq)
  redis.call('ZADD', outbox_key, now, a.job)
  redis.call('PUBLISH', wake_channel, 'outbox')
end
apply_limits(job, scopes)
dispatch(pool)
return run(attempt)
