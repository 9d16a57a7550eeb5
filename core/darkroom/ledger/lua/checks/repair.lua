-- Moves one job to where its record says that it belongs, for `darkroom audit --repair`; the record alone decides.
-- `pool` and `worker`: a pool whose sets, or a worker whose entry, list the job wrongly. `letter_of`: the tenant whose
-- dead letters do. `delivery`: one of its deliveries instead, and `target`: the target that lists it. Returns what was
-- done, in words: nothing for a job that is where it belongs.
allow_at_maxmemory()
local key = job_key(a.job)
local rec = redis.call('HMGET', key, 'state', 'pool', 'order', 'not_before', 'token', 'worker', 'lease', 'applied',
  'archived', 'tenant', PENDING_STARTS, 'dead')
local state, pool = rec[1], rec[2]
local done = {}
local function note(happened, words) if happened == 1 then done[#done + 1] = words end end
local function leave(set, from) note(redis.call('ZREM', set, a.job), 'out of ' .. from) end
local function join(set, to) note(redis.call('ZADD', set, 'NX', now, a.job), 'into ' .. to) end
local function leave_pool(name)
  leave(waiting_key(name), 'waiting')
  leave(dispatched_key(name), 'dispatched')
  leave(due_key(name), 'due')
  leave(held_key(name), 'held')
  leave(running_key(name), 'running')
end

if a.delivery then
  local it = redis.call('HMGET', delivery_key(a.delivery), 'state', 'job', 'target')
  local target = a.target or it[3]
  if it[1] == 'open' and it[3] == target then
    note(redis.call('PERSIST', delivery_key(a.delivery)), 'its record kept')
    note(redis.call('ZADD', deliveries_key(target), 'NX', now, a.delivery), 'due')
    note(redis.call('ZADD', deliveries_of_key(it[2]), 'CH', 1, a.delivery), 'into the deliveries of its job')
    redis.call('PERSIST', deliveries_of_key(it[2]))
  else
    note(redis.call('ZREM', deliveries_key(target), a.delivery), 'out of the due deliveries')
    redis.call('ZREM', leased_key(target), a.delivery)
  end
  local was_known = redis.call('ZSCORE', targets_key, target)
  schedule_target(target)
  note(not was_known and redis.call('ZSCORE', targets_key, target) and 1 or 0, 'its target is scheduled again')
  return done
end

if a.letter_of and not (state == 'failed' and rec[12] and rec[10] == a.letter_of) then
  leave(dead_letters_key(a.letter_of), 'the dead letters')
end
if a.pool and a.pool ~= pool then leave_pool(a.pool) end
if a.worker and redis.call('HGET', busy_key, a.worker) == a.job and (state ~= 'running' or rec[6] ~= a.worker) then
  note(redis.call('HDEL', busy_key, a.worker), 'worker ' .. a.worker .. ' removed from the busy workers')
end

if not state then
  leave(deadlines_key, 'the deadlines')
  leave(outbox_key, 'the outbox')
  leave(history_key, 'the history to be written')
  return done
end
if not (rec[8] and rec[9]) or rec[11] or redis.call('ZSCORE', dead_letters_key(rec[10]), a.job) then
  note(redis.call('PERSIST', key), 'its record kept')
  redis.call('PERSIST', log_key(a.job))
end
note(redis.call('ZADD', tenant_key(rec[10]), 0, a.job), 'into the index of its tenant')

local job = queued_job(a.job, pool)
local scopes = scopes_of(job)
-- Makes the flow and the scopes of the job list it as its place requires; a job that waits is queued anew.
local function put_in_order(place)
  if place ~= 'waiting' then remove_from_backlog(job) end
  if is_in_order(job, place, scopes) then return end
  remove_from_backlog(job)
  redis.call('ZREM', share_key(pool, job.tenant), a.job)
  leave_scopes(job, scopes)
  redis.call('HDEL', key, 'held')
  for _, scope in ipairs(scopes) do
    redis.call('SREM', running_of_key(scope.name), a.job)
    if place == 'running' then redis.call('SADD', running_of_key(scope.name), a.job) end
    if place == 'dispatched' then redis.call('ZADD', admitted_key(pool, scope.name), digits(job.line), a.job) end
  end
  if place == 'dispatched' then redis.call('ZADD', share_key(pool, job.tenant), digits(job.order or 0), a.job) end
  if place == 'waiting' or place == 'held' then enqueue(job, scopes) end
  apply_limits(job, scopes)
  note(1, 'in order again')
end

if is_terminal(state) then
  leave_pool(pool)
  put_in_order(state)
  leave(deadlines_key, 'the deadlines')
  if rec[8] and not rec[11] then leave(outbox_key, 'the outbox') else join(outbox_key, 'the outbox') end
  if rec[9] then leave(history_key, 'the history to be written') else join(history_key, 'the history to be written') end
  redis.call('PUBLISH', wake_channel, 'outbox')
  return done
end

-- A later version wrote this state, and defines which sets the job is in.
if state ~= 'running' and state ~= 'pending' then return done end

if rec[11] then join(outbox_key, 'the outbox') else leave(outbox_key, 'the outbox') end
leave(history_key, 'the history to be written')
if state == 'running' then
  leave(waiting_key(pool), 'waiting')
  leave(dispatched_key(pool), 'dispatched')
  leave(due_key(pool), 'due')
  leave(held_key(pool), 'held')
  if rec[6] then
    note(redis.call('HSETNX', busy_key, rec[6], a.job), 'worker ' .. rec[6] .. ' added to the busy workers')
  end
  if not redis.call('ZSCORE', running_key(pool), a.job) then
    if rec[5] and rec[7] and now < tonumber(rec[7]) then
      -- Its worker may be alive: the lease counts until it lapses.
      note(redis.call('ZADD', running_key(pool), rec[7], a.job), 'under its lease again')
    else
      release_job(a.job, pool, 'worker_lost', true, 'no sign of life from worker ' .. (rec[6] or ''))
      record_reply(a.job, rec[5], 'lost')
      done[#done + 1] = 'requeued'
      return done
    end
  end
  put_in_order('running')
  return done
end

-- Pending: in one of four sets. A message may be in transit, so dispatched comes first.
leave(running_key(pool), 'running')
if redis.call('ZSCORE', dispatched_key(pool), a.job) then
  leave(waiting_key(pool), 'waiting')
  leave(due_key(pool), 'due')
  leave(held_key(pool), 'held')
  put_in_order('dispatched')
elseif redis.call('ZSCORE', due_key(pool), a.job) then
  leave(waiting_key(pool), 'waiting')
  leave(held_key(pool), 'held')
  put_in_order('due')
elseif rec[4] and now < tonumber(rec[4]) then
  leave(waiting_key(pool), 'waiting')
  leave(held_key(pool), 'held')
  note(redis.call('ZADD', due_key(pool), rec[4], a.job), 'due again')
  put_in_order('due')
elseif redis.call('ZSCORE', held_key(pool), a.job) then
  leave(waiting_key(pool), 'waiting')
  put_in_order('held')
elseif redis.call('ZSCORE', waiting_key(pool), a.job) then
  put_in_order('waiting')
else
  redis.call('ZREM', share_key(pool, job.tenant), a.job)
  leave_scopes(job, scopes)
  redis.call('HDEL', key, 'held')
  note(1, enqueue(job, scopes) and 'waiting again' or 'held again')
end
dispatch(pool)
return done
