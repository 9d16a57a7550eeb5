-- Prepended to every script of this folder, as far as it needs it (Redis scripts cannot include one another): the names
-- of keys, the clock, and the steps that several transitions share. KEYS[1] is the namespace; ARGV are names and values
-- in turn.

local P = KEYS[1]
local a = {}
for i = 1, #ARGV, 2 do a[ARGV[i]] = ARGV[i + 1] end

-- Milliseconds of Redis' own clock; a test passes a time instead.
local now
if a.now then
  now = tonumber(a.now)
else
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end

local MAX_PUSHES = 5         -- messages in a row that were received and never claimed; then the job is undeliverable
local MAX_FAULTS = 10        -- uncounted releases for `worker_fault`; then the job itself is at fault
local MAX_DISPATCH = 100     -- messages pushed by one call at most, so that no script is long
local MAX_STREAM = 10000     -- entries of a tenant's stream: minutes of a busy tenant, weeks of a quiet one
local MAX_ADDED = 10         -- undelivered events of an earlier version that one call adds to their groups
local JOB_BYTES = 3072       -- memory of a job beside its input, fields and message, rounded up: 2 KB were measured
local MESSAGE_BYTES = 1024   -- of the message, as jobs of earlier versions and finished jobs count it
local MAX_AUDIT = 100000     -- entries of the audit trail that SQL does not have; then nothing is done that needs one
local KEPT_INPUT = 1024      -- bytes of an input that stays as long as the record; a larger one is removed earlier
local SET_BACK_MS = 1000     -- a clock that is behind its last reading by less was slewed, or two calls were reordered
local CLOCK_SLACK_MS = 10000 -- a part's clock that differs from Redis' by less is not recorded: a call may take as long
local RECORD_TTL_MS = 24 * 3600 * 1000   -- until `set_retention` sets another one
local ENDED_BYTES = 128 * 1024 * 1024    -- of finished jobs' records, likewise
local LOG_TTL_MS = 3600 * 1000
local TARGET_TTL_MS = 7 * 24 * 3600 * 1000 -- for the record of a target without deliveries
local DAY_MS = 24 * 3600 * 1000
local COUNTS_TTL_MS = 32 * DAY_MS -- for the counts of an owner without unfinished jobs: longer than any month
local RATE_BURST_MS = 1000   -- deliveries of this period may be leased at once to a receiver that granted a rate

-- The order of a waiting job is class * CLASS + tag; class 0 is the most urgent one. Tags are below 2^49, so that every
-- order is exact as a double.
local CLASS = 562949953421312
local SHARE = 65536          -- what a job of cost 1 adds to the tag of a tenant of weight 1
local MAX_COST = 16          -- a job costs at most this many average ones of its pool, and at least a 16th of one
local MIN_WEIGHT = 0.001

-- Fields of a job record, each a list of log numbers with blanks between: the `started` events that are still to be
-- published, and those that were. Records of version 3 have them under these names.
local PENDING_STARTS = 'untold'
local PUBLISHED_STARTS = 'told'

-- The names of all keys and channels; `keys.py` has the same ones, with what each holds.
local function job_key(id) return P .. ':job:' .. id end
local function log_key(id) return P .. ':log:' .. id end
local function waiting_key(pool) return P .. ':waiting:' .. pool end
local function dispatched_key(pool) return P .. ':dispatched:' .. pool end
local function due_key(pool) return P .. ':due:' .. pool end
local function running_key(pool) return P .. ':running:' .. pool end
local function pool_key(pool) return P .. ':pool:' .. pool end
local function held_key(pool) return P .. ':held:' .. pool end
local function ageing_key(pool) return P .. ':ageing:' .. pool end
local function virtual_key(pool) return P .. ':virtual:' .. pool end
local function share_key(pool, flow) return P .. ':share:' .. pool .. ':' .. flow end
local function by_user_key(pool, tenant) return P .. ':by-user:' .. pool .. ':' .. tenant end
local function admitted_key(pool, scope) return P .. ':admitted:' .. pool .. ':' .. scope end
local function excess_key(pool, scope) return P .. ':excess:' .. pool .. ':' .. scope end
local function running_of_key(scope) return P .. ':running-of:' .. scope end
local function running_limits_key(tenant) return P .. ':running-limits:' .. tenant end
local function limited_pools_key(tenant) return P .. ':limited-pools:' .. tenant end
local function slots_key(pool) return P .. ':slots:' .. pool end
local workers_key = P .. ':workers'
local function worker_key(name) return P .. ':worker:' .. name end
local function workers_of_key(pool) return P .. ':workers-of:' .. pool end
local function decisions_key(pool) return P .. ':decisions:' .. pool end
local function queue_key(pool) return P .. ':celery:pool.' .. pool end
local function tenant_key(tenant) return P .. ':tenant:' .. tenant end
local function tenant_stream_key(tenant) return P .. ':news:' .. tenant end
local function dead_letters_key(tenant) return P .. ':dead:' .. tenant end
local function idempotency_key(tenant, key) return P .. ':idem:' .. tenant .. ':' .. key end
local function canary_key(id) return P .. ':canary:' .. id end
local function subscription_key(id) return P .. ':subscription:' .. id end
local function subscriptions_key(tenant) return P .. ':subscriptions:' .. tenant end
local function start_subscriptions_key(tenant) return P .. ':starters:' .. tenant end
local function delivery_key(id) return P .. ':delivery:' .. id end
local function deliveries_of_key(job) return P .. ':deliveries-of:' .. job end
local function deliveries_key(target) return P .. ':deliveries:' .. target end
local function leased_key(target) return P .. ':leased:' .. target end
local function target_key(target) return P .. ':target:' .. target end
local targets_key = P .. ':targets'
local notices_key = P .. ':notices'
local function undelivered_key(id) return P .. ':undelivered:' .. id end
local function undelivered_by_tenant_key(tenant) return P .. ':undelivered-by-tenant:' .. tenant end
local function undelivered_of_key(group) return P .. ':undelivered-of:' .. group end
local epoch_key = P .. ':epoch'
local clock_key = P .. ':clock'
local pools_key = P .. ':pools'
local log_draft_key = P .. ':log-draft'
local outbox_key = P .. ':outbox'
local history_key = P .. ':history'
local retired_key = P .. ':retired'
local ended_key = P .. ':ended'
local deadlines_key = P .. ':deadlines'
local counters_key = P .. ':counters'
local access_key = P .. ':access'
local function limits_key(tenant, key_id) return P .. ':limits:' .. tenant .. (key_id and ':' .. key_id or '') end
local key_uses_key = P .. ':key-uses'
local function grant_key(kind, digest) return P .. ':grant:' .. kind .. ':' .. digest end
local function grants_of_key(kind, owner) return P .. ':grants-of:' .. kind .. ':' .. owner end
local audit_key = P .. ':audit'
local audit_open_key = P .. ':audit-open'
local audit_head_key = P .. ':audit-head'
local busy_key = P .. ':busy'
local undelivered_by_age_key = P .. ':undelivered-by-age'
local undelivered_by_bytes_key = P .. ':undelivered-by-bytes'
local undelivered_by_count_key = P .. ':undelivered-by-count'
local function lease_reply_key(kind, owner) return P .. ':taken:' .. kind .. ':' .. owner end
local never_key = P .. ':never'
local function live_channel(id) return P .. ':live:' .. id end
local wake_channel = P .. ':wake'
local access_channel = P .. ':access-changed'

-- The queues of the outbox by kind, for `lease_outbox` and `reschedule`.
local lease_queues = {relay = outbox_key, history = history_key, notice = notices_key}

-- The record that an entry belongs to: that of a subscription for a notice, that of a job for all else.
local function leased_record(kind, id) return kind == 'notice' and subscription_key(id) or job_key(id) end

-- At `maxmemory` Redis refuses a script whose first write may grow; one that begins with a HDEL runs to its end. Every
-- script that writes, but `accept`, calls this first, so that jobs can finish, and free memory, when memory is used up.
local function allow_at_maxmemory() redis.call('HDEL', never_key, 'set') end

-- Lists of words are stored as one string, with blanks between.
local function has_word(words, word)
  return words and string.find(' ' .. words .. ' ', ' ' .. word .. ' ', 1, true) ~= nil
end

local function is_terminal(state)
  return state == 'completed' or state == 'failed' or state == 'cancelled' or state == 'expired'
end

-- Whether an entry of the audit trail may be added. While SQL is unavailable the entries wait here, and the jobs that
-- wait for the history use more memory than these.
local function has_room_in_audit(entry)
  return redis.call('ZCARD', audit_key) + redis.call('HLEN', audit_open_key) < MAX_AUDIT
    or redis.call('ZSCORE', audit_key, entry)
end

-- Adds an entry to those that SQL does not have, once.
local function append_to_audit(entry)
  if redis.call('ZSCORE', audit_key, entry) then return end
  redis.call('ZADD', audit_key, redis.call('HINCRBY', counters_key, 'audited', 1), entry)
end

-- Whether a member of a set has a record. Without one (keys were deleted by hand) it is removed from the set and
-- counted: one such job must not stop a pool; `darkroom audit` reports it.
local function has_record(id, set)
  if redis.call('EXISTS', job_key(id)) == 1 then return true end
  redis.call('ZREM', set, id)
  redis.call('HINCRBY', counters_key, 'vanished', 1)
  return false
end

-- Appends the entry to the stream of the tenant's jobs, and wakes its subscribers. The data is in the job's record
-- alone, so that a deletion removes it. Progress is not in the stream. One field, because submit writes thousands per
-- second.
local function append_to_tenant_stream(id, tenant, seq, event, state)
  local stream = tenant_stream_key(tenant)
  local entry = id .. ' ' .. seq .. ' ' .. event .. ' ' .. state .. ' ' .. now
  redis.call('XADD', stream, 'MAXLEN', '~', MAX_STREAM, '*', 'entry', entry)
  redis.call('PUBLISH', stream, '')
end

-- Appends an entry to the job's log and publishes it. `data` is JSON text, never decoded here. `tenant` is the job's,
-- where the script knows it.
local function log(id, event, state, data, tenant)
  local seq = redis.call('HINCRBY', job_key(id), 'seq', 1)
  redis.call('XADD', log_key(id), seq .. '-0', 'event', event, 'state', state, 'at', now, 'data', data)
  redis.call('PUBLISH', live_channel(id), seq .. '\n' .. event .. '\n' .. state .. '\n' .. now .. '\n' .. data)
  local of_tenant = event ~= 'progressed' and (tenant or redis.call('HGET', job_key(id), 'tenant'))
  if of_tenant then append_to_tenant_stream(id, of_tenant, seq, event, state) end
  return seq
end

-- The job's message as push number `n` wrote it: each push has a delivery tag of its own.
local function message_of(id, n)
  local head, tail = unpack(redis.call('HMGET', job_key(id), 'message_head', 'message_tail'))
  return head .. id .. ':' .. n .. tail
end

-- Pushes the job's message. The queue has the same order as the set of dispatched jobs, so that the queue position is a
-- rank: the message is inserted before that of the next job in the set (kombu reads with BRPOP, from the right).
-- Messages that a worker has received and not claimed are in the set alone.
local function push(id, pool)
  local n = redis.call('HINCRBY', job_key(id), 'pushes', 1)
  redis.call('HSET', job_key(id), 'pushed', now)
  local head, tail, order = unpack(redis.call('HMGET', job_key(id), 'message_head', 'message_tail', 'order'))
  local message = head .. id .. ':' .. n .. tail
  redis.call('ZADD', dispatched_key(pool), order, id)
  local rank = redis.call('ZRANK', dispatched_key(pool), id)
  while true do
    rank = rank + 1
    local behind = redis.call('ZRANGE', dispatched_key(pool), rank, rank)[1]
    if not behind then break end
    local pushes = redis.call('HGET', job_key(behind), 'pushes')
    if pushes and redis.call('LINSERT', queue_key(pool), 'AFTER', message_of(behind, pushes), message) > 0 then return end
  end
  redis.call('LPUSH', queue_key(pool), message)
end

-- How many messages the queue has room for: two per worker and one.
local function room_in_queue(pool)
  local slots = redis.call('ZCOUNT', slots_key(pool), now, '+inf')
  return 2 * slots + 1 - redis.call('LLEN', queue_key(pool))
end

-- What the order of a pending job depends on. `order` is its position in its pool: nil for a job that has been held since
-- it was accepted. `line` is its position among its tenant's jobs: of a running limit, and of the users of a tenant. It
-- is the order in a record of an earlier version. `tenant` is empty where there is no record.
local function queued_job(id, pool)
  local rec = redis.call('HMGET', job_key(id), 'tenant', 'key_id', 'order', 'line', 'share', 'user')
  return {
    id = id, pool = pool, tenant = rec[1] or '', key = rec[2], order = tonumber(rec[3]),
    line = tonumber(rec[4] or rec[3] or 0), share = tonumber(rec[5] or SHARE), user = rec[6],
  }
end

local function digits(number) return string.format('%.0f', number) end

local function class_of(order) return math.floor(order / CLASS) end

-- The orders of a class, as bounds of a range of scores.
local function bounds_of(class) return digits(class * CLASS), '(' .. digits((class + 1) * CLASS) end

-- The virtual time of a queue: the highest tag of a job that started. A queue is a class of the pool, or the users of a
-- tenant in it. Jobs of earlier versions have their arrival as their tag: they are before those of a new queue.
local function virtual_time(pool, queue)
  return tonumber(redis.call('HGET', virtual_key(pool), queue) or redis.call('HGET', pool_key(pool), 'arrivals') or 0)
end

-- The next order of a flow (self-clocked fair queueing): it starts at the virtual time, or at the tag of the flow's last
-- job that has not started, whichever is later. At the end of the band all orders are equal, and jobs alike come by id.
local function next_order(pool, queue, flow, class, share)
  local from, below = bounds_of(class)
  local last = redis.call('ZREVRANGEBYSCORE', share_key(pool, flow), below, from, 'WITHSCORES', 'LIMIT', 0, 1)[2]
  local start = math.max(virtual_time(pool, queue), last and tonumber(last) - class * CLASS or 0)
  if not last then share = share - 1 end -- the first job of a flow comes before those that would be alike
  return class * CLASS + math.min(start + share, CLASS - 1)
end

-- Where the users of a tenant share its jobs, they take turns as tenants do, with equal weights. A user is a flow.
local function flow_of_user(job) return job.tenant .. '/' .. job.user end
local function users_queue(class, tenant) return class .. ' ' .. tenant end

local function add_to_backlog(job)
  if not job.order then
    local class = class_of(job.line)
    job.order = next_order(job.pool, class, job.tenant, class, job.share)
    redis.call('HSET', job_key(job.id), 'order', digits(job.order))
  end
  redis.call('ZADD', waiting_key(job.pool), digits(job.order), job.id)
  redis.call('ZADD', share_key(job.pool, job.tenant), digits(job.order), job.id)
  if job.user then redis.call('ZADD', by_user_key(job.pool, job.tenant), digits(job.line), job.id) end
end

local function remove_from_backlog(job)
  redis.call('ZREM', waiting_key(job.pool), job.id)
  if job.user then redis.call('ZREM', by_user_key(job.pool, job.tenant), job.id) end
end

-- The job that takes the turn of `job`, which is the next of its pool: the first of its tenant's users. The two exchange
-- their orders, so that the tenant's share is the same.
local function first_of_users(job)
  local from, below = bounds_of(class_of(job.order))
  local first = redis.call('ZRANGEBYSCORE', by_user_key(job.pool, job.tenant), from, below, 'LIMIT', 0, 1)[1]
  if not first or first == job.id or not has_record(first, by_user_key(job.pool, job.tenant)) then return job end
  local other = queued_job(first, job.pool)
  job.order, other.order = other.order, job.order
  redis.call('HSET', job_key(job.id), 'order', digits(job.order))
  redis.call('HSET', job_key(other.id), 'order', digits(other.order))
  add_to_backlog(job)
  add_to_backlog(other)
  return other
end

-- The waiting job whose order a waiting job will have when it is dispatched: with its tenant's users in turn, that of as
-- many orders as there are jobs before it.
local function turn_of(job)
  if not job.user then return job.id end
  local users = by_user_key(job.pool, job.tenant)
  local rank = redis.call('ZRANK', users, job.id)
  if not rank then return job.id end
  local from, below = bounds_of(class_of(job.line))
  local dispatched = redis.call('ZCOUNT', share_key(job.pool, job.tenant), from, below)
    - redis.call('ZCOUNT', users, from, below)
  rank = rank - redis.call('ZCOUNT', users, '-inf', '(' .. from) + dispatched
  return redis.call('ZRANGEBYSCORE', share_key(job.pool, job.tenant), from, below, 'LIMIT', rank, 1)[1] or job.id
end

local function advance_virtual_time(pool, queue, tag)
  if tag > virtual_time(pool, queue) then redis.call('HSET', virtual_key(pool), queue, digits(tag)) end
end

-- Returns the message of the last dispatched job to the backlog, unless a worker has received it. Returns whether it did.
local function return_last_message(pool)
  local last = redis.call('ZREVRANGE', dispatched_key(pool), 0, 0)[1]
  if not last then return false end
  if not has_record(last, dispatched_key(pool)) then
    local message = redis.call('LINDEX', queue_key(pool), 0)
    if not message or string.match(message, '"delivery_tag": ?"([^":]+):%d+"') ~= last then return false end
    return redis.call('LPOP', queue_key(pool)) and true
  end
  local message = message_of(last, redis.call('HGET', job_key(last), 'pushes'))
  if redis.call('LREM', queue_key(pool), 1, message) == 0 then return false end
  redis.call('ZREM', dispatched_key(pool), last)
  add_to_backlog(queued_job(last, pool))
  return true
end

-- Whether the first waiting job comes before the last dispatched one.
local function is_before_last(job, pool)
  local last, order = unpack(redis.call('ZREVRANGE', dispatched_key(pool), 0, 0, 'WITHSCORES'))
  order = tonumber(order)
  return last and (job.order < order or job.order == order and job.id < last)
end

-- Fills the Celery queue from the backlog: the lowest order first, which is priority class, then fair share. A job that
-- comes before the last one in the full queue takes its place.
local function dispatch(pool)
  local room = room_in_queue(pool)
  for _ = 1, MAX_DISPATCH do
    local id, order = unpack(redis.call('ZRANGE', waiting_key(pool), 0, 0, 'WITHSCORES'))
    if not id then return end
    if room <= 0 then
      if not is_before_last({id = id, order = tonumber(order)}, pool) or not return_last_message(pool) then return end
      room = 1
    end
    local job = queued_job(id, pool)
    if job.tenant ~= '' or has_record(id, waiting_key(pool)) then
      if job.user then job = first_of_users(job) end
      remove_from_backlog(job)
      push(job.id, pool)
      room = room - 1
    end
  end
end

local function remove_from_queue(job)
  remove_from_backlog(job)
  redis.call('ZREM', share_key(job.pool, job.tenant), job.id)
  if redis.call('ZREM', dispatched_key(job.pool), job.id) == 1 then
    redis.call('LREM', queue_key(job.pool), 1, message_of(job.id, redis.call('HGET', job_key(job.id), 'pushes')))
  end
end

-- The running limits that apply to the job: that of its key, then that of its tenant. Each is a scope. In every pool a
-- scope admits as many pending jobs as may start there: its limit less the jobs that run in all pools. The others are
-- held, in the order of their lines. A job is eligible once all of its scopes admit it.
local function scopes_of(job)
  local limits = redis.call('HMGET', running_limits_key(job.tenant), 'tenant', job.key or 'tenant')
  local scopes = {}
  if job.key and limits[2] then
    scopes[1] = {name = job.tenant .. '/' .. job.key, kind = 'key', limit = tonumber(limits[2])}
  end
  if limits[1] then scopes[#scopes + 1] = {name = job.tenant, kind = 'tenant', limit = tonumber(limits[1])} end
  return scopes
end

local function room_in_scope(scope, pool)
  return scope.limit - redis.call('SCARD', running_of_key(scope.name))
    - redis.call('ZCARD', admitted_key(pool, scope.name))
end

-- Holds a pending job that a scope does not admit.
local function hold(job, scope)
  redis.call('ZADD', excess_key(job.pool, scope.name), digits(job.line), job.id)
  redis.call('ZADD', held_key(job.pool), now, job.id)
  redis.call('HSET', job_key(job.id), 'held', scope.kind)
end

-- Holds the last job that scope number `i` admits.
local function displace_last(pool, scopes, i)
  local last = redis.call('ZREVRANGE', admitted_key(pool, scopes[i].name), 0, 0)[1]
  for j = i, #scopes do
    redis.call('ZREM', admitted_key(pool, scopes[j].name), last)
    redis.call('ZREM', excess_key(pool, scopes[j].name), last)
  end
  local job = queued_job(last, pool)
  if job.tenant == '' then return last end
  remove_from_queue(job)
  hold(job, scopes[i])
  return last
end

-- Whether the scopes of a pending job, from number `first` on, admit it; otherwise it is held. It displaces a job with a
-- later line.
local function is_admitted(job, scopes, first)
  for i = first, #scopes do
    redis.call('ZADD', admitted_key(job.pool, scopes[i].name), digits(job.line), job.id)
    if room_in_scope(scopes[i], job.pool) < 0 and displace_last(job.pool, scopes, i) == job.id then return false end
  end
  return true
end

-- Adds a pending job to the backlog, or to the held jobs. Returns whether it is eligible.
local function admit(job, scopes, first)
  if not is_admitted(job, scopes, first) then return false end
  add_to_backlog(job)
  return true
end

-- Applies the running limits of a job's key and tenant to all pools, after one of their jobs started or left.
local function apply_limits(job, scopes)
  if #scopes == 0 then return end
  for _, pool in ipairs(redis.call('SMEMBERS', limited_pools_key(job.tenant))) do
    local was_empty = redis.call('ZCARD', waiting_key(pool)) + redis.call('ZCARD', dispatched_key(pool)) == 0
    for i, scope in ipairs(scopes) do
      for _ = 1, -room_in_scope(scope, pool) do
        if redis.call('ZCARD', admitted_key(pool, scope.name)) == 0 then break end
        displace_last(pool, scopes, i)
      end
      for _ = 1, room_in_scope(scope, pool) do
        local next_id = redis.call('ZRANGE', excess_key(pool, scope.name), 0, 0)[1]
        if not next_id then break end
        redis.call('ZREM', excess_key(pool, scope.name), next_id)
        if has_record(next_id, held_key(pool)) then
          redis.call('ZREM', held_key(pool), next_id)
          redis.call('HDEL', job_key(next_id), 'held')
          admit(queued_job(next_id, pool), scopes, i)
        end
      end
    end
    dispatch(pool)
    if was_empty and redis.call('ZCARD', dispatched_key(pool)) > 0 then
      redis.call('PUBLISH', wake_channel, 'backlog ' .. pool)
    end
  end
end

-- Adds a pending job to the backlog of its pool at its order, or to the held jobs. Returns whether it is eligible.
local function enqueue(job, scopes)
  if #scopes > 0 then redis.call('SADD', limited_pools_key(job.tenant), job.pool) end
  if job.user then redis.call('ZADD', share_key(job.pool, flow_of_user(job)), digits(job.line), job.id) end
  if class_of(job.line) > 0 then redis.call('ZADD', ageing_key(job.pool), now, job.id) end
  return admit(job, scopes, 1)
end

-- Adds the job to the backlog at its old position, and to the queue where that is among the first.
local function requeue(id, pool)
  redis.call('HDEL', job_key(id), 'missed')
  local job = queued_job(id, pool)
  local scopes = scopes_of(job)
  enqueue(job, scopes)
  apply_limits(job, scopes)
  dispatch(pool)
end

-- Removes a job that is no longer pending, or whose order changes, from its flows and scopes, and from the held jobs.
local function leave_scopes(job, scopes)
  redis.call('ZREM', ageing_key(job.pool), job.id)
  if job.user then redis.call('ZREM', share_key(job.pool, flow_of_user(job)), job.id) end
  for _, scope in ipairs(scopes) do
    redis.call('ZREM', admitted_key(job.pool, scope.name), job.id)
    redis.call('ZREM', excess_key(job.pool, scope.name), job.id)
  end
  if redis.call('ZREM', held_key(job.pool), job.id) == 1 then redis.call('HDEL', job_key(job.id), 'held') end
end

-- Removes the job from the sets of pending jobs and, where its message is still in the queue, from that. Returns it, and
-- its scopes, to which the caller applies the limits at the end.
local function remove_from_queues(id, pool)
  local job = queued_job(id, pool)
  local scopes = scopes_of(job)
  remove_from_queue(job)
  leave_scopes(job, scopes)
  redis.call('ZREM', due_key(pool), id)
  redis.call('ZREM', deadlines_key, id)
  return job, scopes
end

-- Whether the flow and the scopes of a job list it as its location in its pool requires: `waiting`, `dispatched`,
-- `held`, `running`, or any other.
local function is_in_order(job, place, scopes)
  local order = redis.call('ZSCORE', share_key(job.pool, job.tenant), job.id)
  local is_eligible = place == 'waiting' or place == 'dispatched'
  if not order and is_eligible then
    if redis.call('HEXISTS', job_key(job.id), 'line') == 1 then return false end -- else it is of an earlier version
  elseif order and (not is_eligible or tonumber(order) ~= job.order) then
    return false
  end
  if place == 'waiting' and tonumber(redis.call('ZSCORE', waiting_key(job.pool), job.id)) ~= job.order then
    return false
  end
  local held_by = redis.call('HGET', job_key(job.id), 'held')
  if (place == 'held') ~= (held_by and true or false) then return false end
  local is_passed = place == 'waiting' or place == 'dispatched' or place == 'held'
  for _, scope in ipairs(scopes) do
    local is_excess = is_passed and held_by == scope.kind
    if is_excess then is_passed = false end
    if (redis.call('ZSCORE', admitted_key(job.pool, scope.name), job.id) and true or false) ~= is_passed
      or (redis.call('ZSCORE', excess_key(job.pool, scope.name), job.id) and true or false) ~= is_excess
      or (redis.call('SISMEMBER', running_of_key(scope.name), job.id) == 1) ~= (place == 'running') then
      return false
    end
  end
  return place ~= 'held' or not is_passed
end

-- Limits. A tenant and each of its credentials (`key_id`) is an *owner* of counts, in a hash: `jobs` that are pending,
-- `bytes` of unfinished jobs, images and GPU milliseconds of the `day` and the `month`, and `tat`, the theoretical
-- arrival time of the next submission in microseconds (GCRA,
-- https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm). Every job is counted, whether or not a limit is set. Its
-- images and an estimate of its GPU time count from its acceptance, in the day and the month (UTC) of that; when it
-- finishes, what it used replaces them. Days are counted since 1970-01-01, and a month is named by its first day.

-- https://howardhinnant.github.io/date_algorithms.html#civil_from_days
local function month_of(day)
  local in_era = (day + 719468) % 146097
  local year = math.floor((in_era - math.floor(in_era / 1460) + math.floor(in_era / 36524)
    - math.floor(in_era / 146096)) / 365)
  local in_year = in_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * in_year + 2) / 153)
  return day - (in_year - math.floor((153 * month + 2) / 5))
end

-- The keys of the counts that a job is in.
local function owners_of(tenant, key_id)
  return {limits_key(tenant), key_id and limits_key(tenant, key_id) or nil}
end

-- Adds to the counts of a job's owners. Records of earlier versions, without `reserved`, are not counted.
local function add_to_counts(id, jobs, bytes, images, gpu_ms)
  local rec = redis.call('HMGET', job_key(id), 'tenant', 'key_id', 'created', 'reserved')
  if not rec[4] then return end
  local day = math.floor(tonumber(rec[3]) / DAY_MS)
  for _, key in ipairs(owners_of(rec[1], rec[2])) do
    if jobs ~= 0 then redis.call('HINCRBY', key, 'jobs', jobs) end
    if bytes ~= 0 and redis.call('HINCRBY', key, 'bytes', bytes) <= 0 then
      redis.call('PEXPIRE', key, COUNTS_TTL_MS)
    end
    if images ~= 0 or gpu_ms ~= 0 then
      local counted = redis.call('HMGET', key, 'day', 'month')
      if tonumber(counted[1] or -1) == day then
        redis.call('HINCRBY', key, 'day_images', images)
        redis.call('HINCRBY', key, 'day_gpu_ms', gpu_ms)
      end
      if tonumber(counted[2] or -1) == month_of(day) then
        redis.call('HINCRBY', key, 'month_images', images)
        redis.call('HINCRBY', key, 'month_gpu_ms', gpu_ms)
      end
    end
  end
end

-- The counts of an owner now, for `accept`.
local function read_counts(key)
  local rec = redis.call('HMGET', key, 'tat', 'jobs', 'bytes', 'day', 'day_images', 'day_gpu_ms', 'month',
    'month_images', 'month_gpu_ms')
  local day = math.floor(now / DAY_MS)
  local month = month_of(day)
  local of_day, of_month = tonumber(rec[4] or -1) == day, tonumber(rec[7] or -1) == month
  return {
    key = key, tat = tonumber(rec[1] or 0), jobs = tonumber(rec[2] or 0), bytes = tonumber(rec[3] or 0),
    day = day, day_images = of_day and tonumber(rec[5]) or 0, day_gpu_ms = of_day and tonumber(rec[6]) or 0,
    month = month, month_images = of_month and tonumber(rec[8]) or 0,
    month_gpu_ms = of_month and tonumber(rec[9]) or 0,
  }
end

-- The limits of an owner, `tenant` or `key`, are arguments such as `tenant_waiting_jobs`; `tenant_limited` is set where
-- any of them is. Here that of submissions per minute: the microseconds that one submission takes, those that the burst
-- takes, and those that are taken now. They are integers, so that no error adds up over a burst. A clock that was set
-- back leaves at most a whole burst.
local function rate_of(owner, counts)
  local per_minute = tonumber(a[owner .. '_submissions_per_minute'])
  if not per_minute then return end
  local each = math.max(1, math.floor(60000000 / per_minute))
  local burst = tonumber(a[owner .. '_burst']) or math.max(1, math.ceil(per_minute / 60))
  return each, burst * each, math.min(math.max(counts.tat - 1000 * now, 0), burst * each)
end

-- The limits of an owner that a job exceeds: names, and in `until_ms` and `by_jobs` when it may be submitted again: in
-- that time, and when that many jobs have started. `used` has the job's bytes and images.
local function exceeded(owner, counts, used, found)
  if not a[owner .. '_limited'] then return end
  local function note(name, until_ms, jobs)
    found[#found + 1] = owner .. '_' .. name
    found.until_ms = math.max(found.until_ms or 0, until_ms)
    found.by_jobs = math.max(found.by_jobs or 0, jobs)
  end
  local function limit(name) return tonumber(a[owner .. '_' .. name] or math.huge) end
  local each, burst, taken = rate_of(owner, counts)
  if each and taken + each > burst then note('submissions_per_minute', (taken + each - burst) / 1000, 0) end
  if counts.jobs >= limit('waiting_jobs') then note('waiting_jobs', 0, counts.jobs - limit('waiting_jobs') + 1) end
  if counts.bytes + used.bytes > limit('waiting_bytes') then
    note('waiting_bytes', 0, math.ceil((counts.bytes + used.bytes - limit('waiting_bytes')) / used.bytes))
  end
  local function budget(period, ends)
    local is_over = counts[period .. '_images'] + used.images > limit('images_per_' .. period)
    if is_over then note('images_per_' .. period, ends * DAY_MS - now, 0) end
    is_over = counts[period .. '_gpu_ms'] >= limit('gpu_seconds_per_' .. period) * 1000
    if is_over then note('gpu_seconds_per_' .. period, ends * DAY_MS - now, 0) end
  end
  budget('day', counts.day + 1)
  budget('month', month_of(counts.month + 31))
end

-- Adds an accepted job to the counts of an owner.
local function charge(owner, counts, used)
  local each, _, taken = rate_of(owner, counts)
  if counts.bytes <= 0 then redis.call('PERSIST', counts.key) end
  counts.jobs, counts.bytes = counts.jobs + 1, counts.bytes + used.bytes
  counts.day_images, counts.month_images = counts.day_images + used.images, counts.month_images + used.images
  counts.day_gpu_ms, counts.month_gpu_ms = counts.day_gpu_ms + used.gpu_ms, counts.month_gpu_ms + used.gpu_ms
  redis.call('HSET', counts.key, 'jobs', counts.jobs, 'bytes', counts.bytes, 'day', counts.day,
    'day_images', counts.day_images, 'day_gpu_ms', counts.day_gpu_ms, 'month', counts.month,
    'month_images', counts.month_images, 'month_gpu_ms', counts.month_gpu_ms)
  if each then
    counts.tat = 1000 * now + taken + each
    redis.call('HSET', counts.key, 'tat', digits(counts.tat))
  end
end

-- Adds to `lines` what remains of each limit of an owner that is set: its name, the remaining quota, and the seconds
-- until there is more (`-`: unknown, or nothing is used).
local function remaining(owner, counts, lines)
  if not a[owner .. '_limited'] then return end
  local function add(name, left, until_ms)
    local seconds = until_ms and string.format('%.0f', math.max(1, math.ceil(until_ms / 1000))) or '-'
    lines[#lines + 1] = owner .. '_' .. name .. ' ' .. string.format('%.0f', math.max(0, left)) .. ' ' .. seconds
  end
  local function limit(name) return tonumber(a[owner .. '_' .. name]) end
  local each, burst, taken = rate_of(owner, counts)
  if each then
    local most = math.floor(burst / each + 0.5)
    local left = math.min(most, math.floor((burst - taken) / each))
    add('submissions_per_minute', left, left < most and (taken - (burst - (left + 1) * each)) / 1000)
  end
  if limit('waiting_jobs') then add('waiting_jobs', limit('waiting_jobs') - counts.jobs) end
  if limit('waiting_bytes') then add('waiting_bytes', limit('waiting_bytes') - counts.bytes) end
  local function budget(period, ends)
    local images, seconds = limit('images_per_' .. period), limit('gpu_seconds_per_' .. period)
    if images then add('images_per_' .. period, images - counts[period .. '_images'], ends * DAY_MS - now) end
    if seconds then
      local left = math.ceil(seconds - counts[period .. '_gpu_ms'] / 1000)
      add('gpu_seconds_per_' .. period, left, ends * DAY_MS - now)
    end
  end
  budget('day', counts.day + 1)
  budget('month', month_of(counts.month + 31))
end

-- Ends the attempt's hold on the job: removes the lease, the token and the worker's entry. The attempt's duration is
-- added to that of the job's earlier ones.
local function release_lease(id, pool)
  local worker, started = unpack(redis.call('HMGET', job_key(id), 'worker', 'attempt_started'))
  redis.call('ZREM', running_key(pool), id)
  local gpu_ms = math.max(0, now - tonumber(started or now))
  redis.call('HINCRBY', job_key(id), 'gpu_ms', gpu_ms)
  add_to_counts(id, 0, 0, 0, gpu_ms)
  redis.call('HDEL', job_key(id), 'token', 'lease')
  for _, scope in ipairs(scopes_of(queued_job(id, pool))) do redis.call('SREM', running_of_key(scope.name), id) end
  if worker and redis.call('HGET', busy_key, worker) == id then redis.call('HDEL', busy_key, worker) end
end

-- The bytes that an unfinished job counts for in the limit. Records before version 3 were accepted uncounted.
local function bytes_of(id)
  local key = job_key(id)
  local rec = redis.call('HMGET', key, 'v', 'reserved')
  if tonumber(rec[1] or 0) < 3 then return 0 end
  local message = rec[2] and redis.call('HSTRLEN', key, 'message_head') + redis.call('HSTRLEN', key, 'message_tail')
  return redis.call('HSTRLEN', key, 'input') + redis.call('HSTRLEN', key, 'fields') + (message or MESSAGE_BYTES)
    + JOB_BYTES
end

local function count_bytes(pool, bytes)
  if bytes == 0 then return end
  redis.call('HINCRBY', pool_key(pool), 'bytes', bytes)
  redis.call('HINCRBY', counters_key, 'unfinished_bytes', bytes)
end

-- The count of a pool without jobs becomes 0, whatever it was: a record that was deleted by hand, or finished by an
-- older version, was not subtracted.
local function uncount_bytes(id, pool)
  local bytes = bytes_of(id)
  if redis.call('ZCARD', waiting_key(pool)) + redis.call('ZCARD', dispatched_key(pool))
    + redis.call('ZCARD', due_key(pool)) + redis.call('ZCARD', held_key(pool))
    + redis.call('ZCARD', running_key(pool)) == 0 then
    bytes = tonumber(redis.call('HGET', pool_key(pool), 'bytes') or 0)
    redis.call('DEL', virtual_key(pool)) -- without jobs there are no tags: virtual time begins anew
  end
  count_bytes(pool, -bytes)
end

-- Replaces what the job reserved by what it used; the durations of its attempts are counted already.
local function settle(id, images)
  local rec = redis.call('HMGET', job_key(id), 'state', 'images', 'reserved')
  if not rec[3] then return end
  local jobs = rec[1] == 'pending' and -1 or 0
  add_to_counts(id, jobs, 0 - bytes_of(id), images - tonumber(rec[2]), 0 - tonumber(rec[3])) -- a bare minus makes "-0"
end

-- The only way into a terminal state: record, log, outbox, history. `data` is the JSON text of the terminal entry,
-- `images` the number of images that it has (none by default).
local function finish_job(id, pool, state, data, images)
  local key = job_key(id)
  settle(id, images or 0)
  local job, scopes = remove_from_queues(id, pool)
  uncount_bytes(id, pool)
  redis.call('HDEL', key, 'message_head', 'message_tail', 'not_before', 'reserved')
  redis.call('HSET', key, 'state', state, 'ended', now, 'end_data', data)
  redis.call('HSET', key, 'end_seq', log(id, state, state, data, job.tenant))
  redis.call('HDEL', key, 'relay_takes', 'relay_refused') -- they counted leases for its start
  redis.call('ZADD', outbox_key, now, id)
  redis.call('ZADD', history_key, now, id)
  redis.call('PUBLISH', wake_channel, 'outbox')
  apply_limits(job, scopes)
  dispatch(pool)
end

-- Fails a job whose attempts are used up: it is a dead letter until it is purged or redriven.
local function finish_as_dead_letter(id, pool, data)
  finish_job(id, pool, 'failed', data)
  redis.call('HSET', job_key(id), 'dead', now)
  redis.call('ZADD', dead_letters_key(redis.call('HGET', job_key(id), 'tenant')), now, id)
end

-- Removes a job from those that count for the limit of finished jobs' bytes.
local function uncount_ended(id)
  local bytes = redis.call('HGET', ended_key, id)
  if not bytes then return end
  redis.call('HDEL', ended_key, id)
  redis.call('HINCRBY', counters_key, 'ended_bytes', 0 - tonumber(bytes))
end

-- Removes a job whose time to live is over, or is ended now, from the index of its tenant. Returns its id.
local function remove_retired(entry)
  local id, tenant = string.match(entry, '^(%S+) (.*)$')
  redis.call('ZREM', retired_key, entry)
  redis.call('ZREM', tenant_key(tenant), id)
  uncount_ended(id)
  return id
end

-- Starts the time to live of a job's keys, where its events are applied, the history has it and it is not a dead
-- letter. The entries of the tenant's index do not expire by themselves: each call removes a few that are overdue.
-- Where the finished jobs use more bytes than they may, each call deletes a few whose time to live ends first.
local function start_ttl(id, tenant)
  local applied, archived, pending = unpack(redis.call('HMGET', job_key(id), 'applied', 'archived', PENDING_STARTS))
  if not (applied and archived) or pending or redis.call('ZSCORE', dead_letters_key(tenant), id) then return end
  local set = redis.call('HMGET', counters_key, 'record_ttl_ms', 'ended_limit')
  local ttl, limit = tonumber(set[1] or RECORD_TTL_MS), tonumber(set[2] or ENDED_BYTES)
  redis.call('PEXPIRE', job_key(id), ttl)
  redis.call('PEXPIRE', log_key(id), math.min(ttl, LOG_TTL_MS))
  redis.call('ZADD', retired_key, now + ttl, id .. ' ' .. tenant)
  local bytes = bytes_of(id) + redis.call('HSTRLEN', job_key(id), 'end_data')
  if redis.call('HSETNX', ended_key, id, bytes) == 1 then redis.call('HINCRBY', counters_key, 'ended_bytes', bytes) end
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', retired_key, '-inf', now, 'LIMIT', 0, 10)) do
    remove_retired(entry)
  end
  for _ = 1, 10 do
    if tonumber(redis.call('HGET', counters_key, 'ended_bytes') or 0) <= limit then return end
    local first = redis.call('ZRANGE', retired_key, 0, 0)[1]
    if not first or first == id .. ' ' .. tenant then return end
    local old = remove_retired(first)
    redis.call('DEL', job_key(old), log_key(old))
  end
end

-- Removes a job from the dead letters: its keys expire as those of any other job.
local function remove_dead_letter(id, tenant)
  redis.call('ZREM', dead_letters_key(tenant), id)
  start_ttl(id, tenant)
end

-- The undelivered events of one tenant and source form a group, so that no source displaces the events of others.
local function group_of(tenant, attributes)
  return redis.sha1hex(tenant .. '\0' .. cjson.decode(attributes).source)
end

-- Updates the weights of a group after one event of it was added, replaced or removed. A group without events is
-- removed.
local function update_group(group, bytes)
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
local function add_to_group(id, group, last, bytes)
  redis.call('HSET', undelivered_key(id), 'group', group)
  redis.call('ZADD', undelivered_of_key(group), last, id)
  update_group(group, bytes)
end

-- Deletes an undelivered event. Returns the bytes of the remaining ones. `listed_in` is the group that lists an event
-- whose record may be missing (a key that was deleted by hand).
local function remove_undelivered(id, listed_in)
  local rec = redis.call('HMGET', undelivered_key(id), 'tenant', 'bytes', 'group')
  local bytes, group = tonumber(rec[2] or 0), rec[3] or listed_in
  redis.call('DEL', undelivered_key(id))
  redis.call('ZREM', undelivered_by_age_key, id)
  if rec[1] then redis.call('ZREM', undelivered_by_tenant_key(rec[1]), id) end
  if group and redis.call('ZREM', undelivered_of_key(group), id) == 1 then update_group(group, 0 - bytes) end
  return redis.call('HINCRBY', counters_key, 'undelivered_bytes', 0 - bytes) -- a bare minus makes "-0" of 0
end

-- The event's number and the recipient of a delivery, from its id `<job>.<seq>.<recipient>`.
local function delivery_parts(id)
  local seq, recipient = string.match(id, '%.(%d+)%.(.+)$')
  return tonumber(seq), recipient
end

-- Sets when a target's next delivery may be leased: once its first one is due, its pause is over, and its rate allows
-- it. A target that was served last comes after those that have waited for longer.
local function schedule_target(target)
  local first = redis.call('ZRANGE', deliveries_key(target), 0, 0, 'WITHSCORES')[2]
  if not first then
    redis.call('ZREM', targets_key, target)
    return
  end
  local about = redis.call('HMGET', target_key(target), 'paused_until', 'next_at', 'served')
  local at = math.max(first, about[1] or 0, (about[2] or 0) - RATE_BURST_MS, about[3] or 0)
  redis.call('ZADD', targets_key, at, target)
end

-- Finishes a delivery: `delivered` or `given_up`. Its time to live starts.
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
  schedule_target(target)
end

-- Makes a delivery due now, for the first time or again.
local function open_delivery(id, job, target)
  redis.call('HSET', delivery_key(id), 'state', 'open', 'target', target)
  redis.call('PERSIST', delivery_key(id))
  redis.call('ZADD', deliveries_of_key(job), 1, id)
  redis.call('PERSIST', deliveries_of_key(job))
  redis.call('ZADD', deliveries_key(target), now, id)
  schedule_target(target)
end

local function failure(kind, message)
  return cjson.encode({error = {kind = kind, message = message}})
end

local CANCELLED = '{"error":{"kind":"cancelled","message":"cancelled on request"}}'

-- Records the reply to the holder of `token` when its attempt ended: a repeated call gets the same one.
local function record_reply(id, token, answer)
  if token then redis.call('HSET', job_key(id), 'ended_token', token, 'ended_answer', answer) end
  return answer
end

-- Requeues a running job without a result. `counts`: whether the attempt counts. A recorded cancellation makes the job
-- cancelled, the limit of attempts (or of faults) failed. Returns `cancelled`, `failed` or `pending`.
local function release_job(id, pool, reason, counts, detail)
  local key = job_key(id)
  local rec = redis.call('HMGET', key, 'cancel', 'counted', 'max_attempts', 'faults', 'attempt', 'worker')
  release_lease(id, pool)
  if rec[1] then
    finish_job(id, pool, 'cancelled', CANCELLED)
    return 'cancelled'
  end
  local counted, faults = tonumber(rec[2]), tonumber(rec[4] or 0)
  if counts then counted = redis.call('HINCRBY', key, 'counted', 1) end
  if reason == 'worker_fault' then faults = redis.call('HINCRBY', key, 'faults', 1) end
  if counts and counted >= tonumber(rec[3]) then
    finish_as_dead_letter(id, pool, failure(reason, detail .. ', attempt ' .. counted .. ' of ' .. rec[3]))
    return 'failed'
  end
  if faults >= MAX_FAULTS then
    finish_as_dead_letter(id, pool, failure(reason, faults .. ' workers in turn reported a fault with this job'))
    return 'failed'
  end
  redis.call('HDEL', key, 'step', 'steps')
  redis.call('HSET', key, 'state', 'pending', 'progress', 0)
  add_to_counts(id, 1, 0, 0, 0)
  log(id, 'released', 'pending',
    cjson.encode({reason = reason, counted = counts, attempt = tonumber(rec[5]), worker = rec[6] or ''}))
  requeue(id, pool)
  return 'pending'
end
