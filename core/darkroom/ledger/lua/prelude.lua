-- Put before every script of this folder (Redis scripts cannot include one another): the names of keys, the clock, and
-- the few moves that several transitions share. KEYS[1] is the prefix; ARGV are names and values in turn.

local P = KEYS[1]
local a = {}
for i = 1, #ARGV, 2 do a[ARGV[i]] = ARGV[i + 1] end

-- Milliseconds of Redis' own clock; a test passes its time instead.
local now
if a.now then
  now = tonumber(a.now)
else
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end

local MAX_PUSHES = 5         -- pushes in a row that were taken and never claimed: then a job is undeliverable
local MAX_FAULTS = 10        -- a job given back uncounted for `worker_fault` so often is at fault itself
local MAX_DISPATCH = 100     -- messages pushed by one call at most, so that no script is long
local MAX_NEWS = 10000       -- entries of a tenant's news that are kept: minutes of a busy tenant, weeks of a quiet one
local ADOPTED = 10           -- undelivered events of an earlier version that one call adds to their groups
local JOB_BYTES = 4096       -- what a job takes beside its input and fields, rounded up: 3 KB were measured
local KEPT_INPUT = 1024      -- bytes of an input that Redis keeps as long as the record; a larger one leaves it earlier
local SET_BACK_MS = 1000     -- a clock that is behind its last reading by less was slewed, or two calls were reordered
local CLOCK_SLACK_MS = 10000 -- a part's clock that differs from Redis' by less is not recorded: a call may take as long
local RECORD_TTL_MS = 24 * 3600 * 1000
local LOG_TTL_MS = 3600 * 1000
local TARGET_TTL_MS = 7 * 24 * 3600 * 1000 -- what is known of a target that is posted to no more
local RATE_BURST_MS = 1000   -- deliveries of so long may be handed out at once to a receiver that granted a rate

local function job_key(id) return P .. ':job:' .. id end
local function log_key(id) return P .. ':log:' .. id end
local function waiting_key(pool) return P .. ':waiting:' .. pool end
local function dispatched_key(pool) return P .. ':dispatched:' .. pool end
local function due_key(pool) return P .. ':due:' .. pool end
local function running_key(pool) return P .. ':running:' .. pool end
local function pool_key(pool) return P .. ':pool:' .. pool end
local function slots_key(pool) return P .. ':slots:' .. pool end
local function worker_key(name) return P .. ':worker:' .. name end
local function workers_of_key(pool) return P .. ':workers-of:' .. pool end
local function decisions_key(pool) return P .. ':decisions:' .. pool end
local function list_key(pool) return P .. ':celery:pool.' .. pool end
local function tenant_key(tenant) return P .. ':tenant:' .. tenant end
local function news_key(tenant) return P .. ':news:' .. tenant end
local function dead_key(tenant) return P .. ':dead:' .. tenant end
local function canary_key(id) return P .. ':canary:' .. id end
local function subscription_key(id) return P .. ':subscription:' .. id end
local function subscriptions_key(tenant) return P .. ':subscriptions:' .. tenant end
local function starters_key(tenant) return P .. ':starters:' .. tenant end -- subscriptions that ask for `started`
local function delivery_key(id) return P .. ':delivery:' .. id end
local function deliveries_of_key(job) return P .. ':deliveries-of:' .. job end -- of a job: 1 open, 0 ended
local function deliveries_key(target) return P .. ':deliveries:' .. target end -- open ones by when they are due
local function leased_key(target) return P .. ':leased:' .. target end -- those that are being posted
local function delivery_parts(id) -- of `<job>.<seq>.<recipient>`: the number of the event and the recipient
  local seq, recipient = string.match(id, '%.(%d+)%.(.+)$')
  return tonumber(seq), recipient
end
local function target_key(target) return P .. ':target:' .. target end
local targets_key = P .. ':targets' -- by when something is to be posted to them
local notices_key = P .. ':notices'
local function undelivered_key(id) return P .. ':undelivered:' .. id end
local function undelivered_by_tenant_key(tenant) return P .. ':undelivered-by-tenant:' .. tenant end
local function undelivered_of_key(group) return P .. ':undelivered-of:' .. group end -- by when each failed last
local clock_key = P .. ':clock'
local pools_key = P .. ':pools'
local log_draft_key = P .. ':log-draft'
local outbox_key = P .. ':outbox'
local history_key = P .. ':history'
local retired_key = P .. ':retired'
local deadlines_key = P .. ':deadlines'
local counters_key = P .. ':counters'
local busy_key = P .. ':busy'
local undelivered_by_age_key = P .. ':undelivered-by-age'
local undelivered_by_bytes_key = P .. ':undelivered-by-bytes' -- groups by the bytes of their events
local undelivered_by_count_key = P .. ':undelivered-by-count' -- groups by the number of their events
local wake_channel = P .. ':wake'

-- Outward work by kind: what `take` hands out and `defer` puts off.
local outward = {relay = outbox_key, history = history_key, notice = notices_key}

-- The record of what such work is about: a notice is of a subscription, all else of a job.
local function outward_record(kind, id) return kind == 'notice' and subscription_key(id) or job_key(id) end

-- At `maxmemory` Redis refuses a script whose first write may grow; one that begins with a HDEL runs to its end.
-- Every script but `accept` calls this first, so that jobs can end, and free memory, when memory is used up.
local function may_always_run() redis.call('HDEL', P .. ':never', 'set') end

-- Lists of words are kept as one string, blanks between.
local function has_word(words, word)
  return words and string.find(' ' .. words .. ' ', ' ' .. word .. ' ', 1, true) ~= nil
end

local function is_terminal(state)
  return state == 'completed' or state == 'failed' or state == 'cancelled' or state == 'expired'
end

-- Whether a member of a set has a record. Without one (somebody deleted keys by hand) it leaves the set and is counted:
-- one such job must not stop a pool; `darkroom audit` names it.
local function has_record(id, set)
  if redis.call('EXISTS', job_key(id)) == 1 then return true end
  redis.call('ZREM', set, id)
  redis.call('HINCRBY', counters_key, 'vanished', 1)
  return false
end

-- The same entry for who follows all of a tenant's jobs, and a wake. Without its data: what a job was is kept in its
-- record alone, so that it goes with it. Progress is no news. One field, because submit writes thousands a second.
local function tell_tenant(id, tenant, seq, event, state)
  local news = news_key(tenant)
  local entry = id .. ' ' .. seq .. ' ' .. event .. ' ' .. state .. ' ' .. now
  redis.call('XADD', news, 'MAXLEN', '~', MAX_NEWS, '*', 'entry', entry)
  redis.call('PUBLISH', news, '')
end

-- One more entry of the job's log, and the same to whoever listens. `data` is JSON text, never decoded here. `tenant` is
-- the job's, where the script knows it.
local function log(id, event, state, data, tenant)
  local seq = redis.call('HINCRBY', job_key(id), 'seq', 1)
  redis.call('XADD', log_key(id), seq .. '-0', 'event', event, 'state', state, 'at', now, 'data', data)
  redis.call('PUBLISH', P .. ':live:' .. id, seq .. '\n' .. event .. '\n' .. state .. '\n' .. now .. '\n' .. data)
  local whose = event ~= 'progressed' and (tenant or redis.call('HGET', job_key(id), 'tenant'))
  if whose then tell_tenant(id, whose, seq, event, state) end
  return seq
end

-- The job's message as it stood in the list after push number `n`: each push has a delivery tag of its own.
local function message_of(id, n)
  local head, tail = unpack(redis.call('HMGET', job_key(id), 'message_head', 'message_tail'))
  return head .. id .. ':' .. n .. tail
end

-- `side`: LPUSH puts it behind all others, RPUSH in front (kombu takes with BRPOP). Dispatched jobs are in the same order
-- in their set, so that the place in the queue is a rank.
local function push(id, pool, side)
  local n = redis.call('HINCRBY', job_key(id), 'pushes', 1)
  redis.call('HSET', job_key(id), 'pushed', now)
  redis.call(side, list_key(pool), message_of(id, n))
  local turn = redis.call('HINCRBY', pool_key(pool), 'turns', 1)
  redis.call('ZADD', dispatched_key(pool), side == 'RPUSH' and -turn or turn, id)
end

local function room_in_list(pool)
  local slots = redis.call('ZCOUNT', slots_key(pool), now, '+inf')
  return 2 * slots + 1 - redis.call('LLEN', list_key(pool))
end

-- Fill the Celery list from the backlog. This is the line that picks: the lowest order, which is priority, then arrival.
local function dispatch(pool)
  local room = math.min(room_in_list(pool), MAX_DISPATCH)
  while room > 0 do
    local id = redis.call('ZRANGE', waiting_key(pool), 0, 0)[1]
    if not id then return end
    if has_record(id, waiting_key(pool)) then
      redis.call('ZREM', waiting_key(pool), id)
      push(id, pool, 'LPUSH')
      room = room - 1
    end
  end
end

-- The last message of a full list goes back to the backlog, to make room for one that must be first.
local function take_back_last(pool)
  local message = redis.call('LPOP', list_key(pool))
  local id = message and string.match(message, '"delivery_tag": ?"([^":]+):%d+"')
  if id and has_record(id, dispatched_key(pool)) and redis.call('ZREM', dispatched_key(pool), id) == 1 then
    redis.call('ZADD', waiting_key(pool), redis.call('HGET', job_key(id), 'order'), id)
  end
end

-- To the backlog in its old place and, where that is the first, to the front of the list.
local function put_back(id, pool)
  redis.call('HDEL', job_key(id), 'missed')
  redis.call('ZADD', waiting_key(pool), redis.call('HGET', job_key(id), 'order'), id)
  if redis.call('ZRANGE', waiting_key(pool), 0, 0)[1] == id then
    if room_in_list(pool) <= 0 then take_back_last(pool) end
    redis.call('ZREM', waiting_key(pool), id)
    push(id, pool, 'RPUSH')
  end
  dispatch(pool)
end

-- Out of every set and, where its message is still in the list, out of that.
local function remove_everywhere(id, pool)
  redis.call('ZREM', waiting_key(pool), id)
  redis.call('ZREM', due_key(pool), id)
  redis.call('ZREM', deadlines_key, id)
  if redis.call('ZREM', dispatched_key(pool), id) == 1 then
    redis.call('LREM', list_key(pool), 1, message_of(id, redis.call('HGET', job_key(id), 'pushes')))
  end
end

-- The attempt holds the job no more: lease, token and the worker's entry go.
local function unlease(id, pool)
  local worker = redis.call('HGET', job_key(id), 'worker')
  redis.call('ZREM', running_key(pool), id)
  redis.call('HDEL', job_key(id), 'token', 'lease')
  if worker and redis.call('HGET', busy_key, worker) == id then redis.call('HDEL', busy_key, worker) end
end

-- What an unfinished job counts for in the limit of bytes. Records before version 3 were accepted without being counted.
local function bytes_of(id)
  local key = job_key(id)
  if tonumber(redis.call('HGET', key, 'v') or 0) < 3 then return 0 end
  return redis.call('HSTRLEN', key, 'input') + redis.call('HSTRLEN', key, 'fields') + JOB_BYTES
end

local function hold_bytes(pool, bytes)
  if bytes == 0 then return end
  redis.call('HINCRBY', pool_key(pool), 'bytes', bytes)
  redis.call('HINCRBY', counters_key, 'unfinished_bytes', bytes)
end

-- A pool without jobs holds no bytes, whatever its count says: a record that was deleted by hand, or finished by an
-- older version, took its share along uncounted.
local function release_bytes(id, pool)
  local bytes = bytes_of(id)
  if redis.call('ZCARD', waiting_key(pool)) + redis.call('ZCARD', dispatched_key(pool)) + redis.call('ZCARD', due_key(pool))
    + redis.call('ZCARD', running_key(pool)) == 0 then
    bytes = tonumber(redis.call('HGET', pool_key(pool), 'bytes') or 0)
  end
  hold_bytes(pool, -bytes)
end

-- The one way into a terminal state: record, log, outbox, history. `data` is the JSON text of the terminal entry.
local function end_job(id, pool, state, data)
  local key = job_key(id)
  remove_everywhere(id, pool)
  release_bytes(id, pool)
  redis.call('HDEL', key, 'message_head', 'message_tail', 'not_before')
  redis.call('HSET', key, 'state', state, 'ended', now, 'end_data', data)
  redis.call('HSET', key, 'end_seq', log(id, state, state, data))
  redis.call('HDEL', key, 'relay_takes', 'relay_refused') -- those were of its start
  redis.call('ZADD', outbox_key, now, id)
  redis.call('ZADD', history_key, now, id)
  redis.call('PUBLISH', wake_channel, 'outbox')
  dispatch(pool)
end

-- The end of a job whose attempts are used up: it fails, and is a dead letter until it is purged or redriven.
local function end_dead(id, pool, data)
  end_job(id, pool, 'failed', data)
  redis.call('HSET', job_key(id), 'dead', now)
  redis.call('ZADD', dead_key(redis.call('HGET', job_key(id), 'tenant')), now, id)
end

-- Where everybody has been told of all that is to be told, the history has it and it is no dead letter, the time to live
-- of what Redis keeps starts. The tenant's index outlives no record for long: each job takes a few of the overdue ones
-- with it.
local function retire(id, tenant)
  local told = redis.call('HMGET', job_key(id), 'applied', 'archived', 'untold')
  if not (told[1] and told[2]) or told[3] or redis.call('ZSCORE', dead_key(tenant), id) then return end
  redis.call('PEXPIRE', job_key(id), RECORD_TTL_MS)
  redis.call('PEXPIRE', log_key(id), LOG_TTL_MS)
  redis.call('ZADD', retired_key, now + RECORD_TTL_MS, id .. ' ' .. tenant)
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', retired_key, '-inf', now, 'LIMIT', 0, 10)) do
    local old, whose = string.match(entry, '^(%S+) (.*)$')
    redis.call('ZREM', retired_key, entry)
    redis.call('ZREM', tenant_key(whose), old)
  end
end

-- A dead letter is one no more: what Redis keeps of the job may be forgotten as that of any other.
local function leave_dead(id, tenant)
  redis.call('ZREM', dead_key(tenant), id)
  retire(id, tenant)
end

-- The undelivered events of one tenant and source form a group, so that no source displaces the events of others.
local function undelivered_group(tenant, attributes)
  return redis.sha1hex(tenant .. '\0' .. cjson.decode(attributes).source)
end

-- Updates the weights of a group after one event of it was added, replaced or removed. A group without events goes.
local function weigh_undelivered(group, bytes)
  local count = redis.call('ZCARD', undelivered_of_key(group))
  if count == 0 then
    redis.call('ZREM', undelivered_by_bytes_key, group)
    redis.call('ZREM', undelivered_by_count_key, group)
    return
  end
  redis.call('ZINCRBY', undelivered_by_bytes_key, bytes, group)
  redis.call('ZADD', undelivered_by_count_key, count, group)
end

-- Adds an undelivered event to its group; `bytes` are those that the group did not count before.
local function join_undelivered(id, group, last, bytes)
  redis.call('HSET', undelivered_key(id), 'group', group)
  redis.call('ZADD', undelivered_of_key(group), last, id)
  weigh_undelivered(group, bytes)
end

-- Deletes an undelivered event. Returns the bytes of the remaining ones. `listed_in` is the group that lists an event
-- whose record may be missing (a key that was deleted by hand).
local function discard_undelivered(id, listed_in)
  local rec = redis.call('HMGET', undelivered_key(id), 'tenant', 'bytes', 'group')
  local bytes, group = tonumber(rec[2] or 0), rec[3] or listed_in
  redis.call('DEL', undelivered_key(id))
  redis.call('ZREM', undelivered_by_age_key, id)
  if rec[1] then redis.call('ZREM', undelivered_by_tenant_key(rec[1]), id) end
  if group and redis.call('ZREM', undelivered_of_key(group), id) == 1 then weigh_undelivered(group, 0 - bytes) end
  return redis.call('HINCRBY', counters_key, 'undelivered_bytes', 0 - bytes) -- a bare minus makes "-0" of 0
end

-- When a target's next delivery may be handed out: once its first one is due, its pause over, and its rate allows. One
-- that was served just now stands behind those that have waited for longer.
local function schedule(target)
  local first = redis.call('ZRANGE', deliveries_key(target), 0, 0, 'WITHSCORES')[2]
  if not first then
    redis.call('ZREM', targets_key, target)
    return
  end
  local about = redis.call('HMGET', target_key(target), 'paused_until', 'next_at', 'served')
  local at = math.max(first, about[1] or 0, (about[2] or 0) - RATE_BURST_MS, about[3] or 0)
  redis.call('ZADD', targets_key, at, target)
end

-- A delivery comes to its end: `delivered` or `given_up`. Its time to live starts.
local function close_delivery(id, state, reason)
  local key = delivery_key(id)
  local job, target = unpack(redis.call('HMGET', key, 'job', 'target'))
  redis.call('ZREM', deliveries_key(target), id)
  redis.call('ZREM', leased_key(target), id)
  redis.call('HDEL', key, 'token', 'reason')
  redis.call('HSET', key, 'state', state, 'ended', now)
  if reason then redis.call('HSET', key, 'reason', reason) end
  redis.call('PEXPIRE', key, RECORD_TTL_MS)
  redis.call('ZADD', deliveries_of_key(job), 0, id)
  if redis.call('ZCOUNT', deliveries_of_key(job), 1, 1) == 0 then
    redis.call('PEXPIRE', deliveries_of_key(job), RECORD_TTL_MS)
  end
  schedule(target)
end

-- A delivery is due now, for the first time or anew.
local function open_delivery(id, job, target)
  redis.call('HSET', delivery_key(id), 'state', 'open', 'target', target)
  redis.call('PERSIST', delivery_key(id))
  redis.call('ZADD', deliveries_of_key(job), 1, id)
  redis.call('PERSIST', deliveries_of_key(job))
  redis.call('ZADD', deliveries_key(target), now, id)
  schedule(target)
end

local function failure(kind, message)
  return cjson.encode({error = {kind = kind, message = message}})
end

local CANCELLED = '{"error":{"kind":"cancelled","message":"cancelled on request"}}'

-- What the holder of `token` was told when it ended its attempt: a repeated call is told the same.
local function remember(id, token, answer)
  if token then redis.call('HSET', job_key(id), 'ended_token', token, 'ended_answer', answer) end
  return answer
end

-- A running job is given back without a result. `counts` says whether the attempt is counted; a recorded cancel ends it,
-- the limit of attempts (or of faults) fails it. Answers `cancelled`, `failed` or `pending`.
local function give_back(id, pool, reason, counts, detail)
  local key = job_key(id)
  local rec = redis.call('HMGET', key, 'cancel', 'counted', 'max_attempts', 'faults', 'attempt', 'worker')
  unlease(id, pool)
  if rec[1] then
    end_job(id, pool, 'cancelled', CANCELLED)
    return 'cancelled'
  end
  local counted, faults = tonumber(rec[2]), tonumber(rec[4] or 0)
  if counts then counted = redis.call('HINCRBY', key, 'counted', 1) end
  if reason == 'worker_fault' then faults = redis.call('HINCRBY', key, 'faults', 1) end
  if counts and counted >= tonumber(rec[3]) then
    end_dead(id, pool, failure(reason, detail .. ', attempt ' .. counted .. ' of ' .. rec[3]))
    return 'failed'
  end
  if faults >= MAX_FAULTS then
    end_dead(id, pool, failure(reason, faults .. ' workers in turn reported a fault with this job'))
    return 'failed'
  end
  redis.call('HDEL', key, 'step', 'steps')
  redis.call('HSET', key, 'state', 'pending', 'progress', 0)
  log(id, 'released', 'pending',
    cjson.encode({reason = reason, counted = counts, attempt = tonumber(rec[5]), worker = rec[6] or ''}))
  put_back(id, pool)
  return 'pending'
end
