-- – → pending, by submit, and by jobs for a dead letter (`redrive_of`), which leaves the list in the same step and is
-- redriven once. Order of checks: same job id, redriven before, idempotency key, pool, jobs in the pool, bytes of all
-- unfinished jobs, memory, room in the audit trail (`audit` is the entry), the limits of the tenant and of the
-- credential. A refusal stores nothing. Redis refuses the first write at `maxmemory`, and with it the whole script.
-- Returns a word and its values with blanks between, and a line for each limit that is set (`remaining`): one string,
-- since submit reads thousands per second.
local key = job_key(a.job)
local of_tenant = read_counts(limits_key(a.tenant))
local of_key = a.key_id and read_counts(limits_key(a.tenant, a.key_id))

local function reply(words)
  local lines = {words}
  remaining('tenant', of_tenant, lines)
  if of_key then remaining('key', of_key, lines) end
  return table.concat(lines, '\n')
end

-- The answer for a job that was accepted before: its id, when that was, and its state, where the record is still here.
local function repeated(id)
  local job = redis.call('HMGET', job_key(id), 'created', 'state')
  return reply('repeated ' .. id .. ' ' .. (job[1] or now) .. (job[2] and ' ' .. job[2] or ''))
end

local owner = redis.call('HGET', key, 'tenant')
if owner and owner ~= a.tenant then return 'conflict' end
if owner then return repeated(a.job) end

if a.redrive_of then
  local letter = redis.call('HMGET', job_key(a.redrive_of), 'tenant', 'redriven_as')
  if letter[1] ~= a.tenant then return 'no_dead_letter' end
  if letter[2] then return repeated(letter[2]) end
  if not redis.call('ZSCORE', dead_letters_key(a.tenant), a.redrive_of) then return 'no_dead_letter' end
end

local idem
if a.idempotency_key then
  idem = idempotency_key(a.tenant, a.idempotency_key)
  local earlier = redis.call('GET', idem)
  if earlier then
    local id, fingerprint = string.match(earlier, '^(%S+) (%S+)$')
    if fingerprint ~= a.fingerprint then return reply('key_reused ' .. id) end
    return repeated(id)
  end
end

local pool = a.pool
local models, image_ms, mean, own_mean = unpack(redis.call('HMGET', pool_key(pool), 'models', 'image_ms ' .. a.model,
  'service_ms', 'service_ms ' .. a.model))
if (models or '') == '' then return reply('no_pool') end

local queued = redis.call('ZCARD', waiting_key(pool)) + redis.call('ZCARD', dispatched_key(pool))
local backlog = queued + redis.call('ZCARD', due_key(pool)) + redis.call('ZCARD', held_key(pool))
-- Seconds until that many jobs have finished, by the pool's measured time between two finished jobs; a minute for each
-- before there is a measurement; ten minutes at most.
local function wait_s(jobs)
  local interval = tonumber(redis.call('HGET', pool_key(pool), 'end_interval') or 60000)
  return math.max(1, math.min(600, math.ceil(jobs * interval / 1000)))
end
if backlog >= tonumber(a.backlog_limit) then
  return reply('backlog_full ' .. backlog .. ' ' .. wait_s(backlog - a.backlog_limit + 1))
end
local bytes = #a.input + #a.fields + #a.message_head + #a.message_tail + JOB_BYTES
local held = tonumber(redis.call('HGET', counters_key, 'unfinished_bytes') or 0)
if held > 0 and held + bytes > tonumber(a.backlog_bytes) then
  return reply('bytes_full ' .. held .. ' ' .. wait_s(math.ceil((held + bytes - a.backlog_bytes) / bytes)))
end
if a.memory_high then return reply('memory_high') end
if a.audit and not has_room_in_audit(a.audit) then return reply('audit_full') end

-- The GPU time that the job reserves: by the model's measured duration per image, or the longest that it may take.
local longest = a.run_timeout * 1000
local used = {bytes = bytes, images = tonumber(a.images or 1)}
used.gpu_ms = math.ceil(math.min(longest, image_ms and image_ms * used.images or longest))
local over = {}
exceeded('tenant', of_tenant, used, over)
if of_key then exceeded('key', of_key, used, over) end
if #over > 0 then
  local wait = math.max(math.ceil(over.until_ms / 1000), over.by_jobs > 0 and wait_s(over.by_jobs) or 0)
  return reply('over_limit ' .. string.format('%.0f', wait) .. ' ' .. table.concat(over, ' '))
end

local arrival = redis.call('HINCRBY', pool_key(pool), 'arrivals', 1)
-- The job's part of its tenant's share: its cost, which is the mean duration of its model over that of the pool, by the
-- weight of the tenant. `order` follows from it once the job is eligible.
local cost = 1
if tonumber(mean or 0) > 0 and own_mean then cost = math.max(1 / MAX_COST, math.min(own_mean / mean, MAX_COST)) end
local share = math.max(1, math.floor(SHARE * cost / math.max(a.weight or 1, MIN_WEIGHT) + 0.5))
local job = {id = a.job, pool = pool, tenant = a.tenant, key = a.key_id, user = a.user, share = share}
local class = tonumber(a.priority) -- 0 is the most urgent of ten
if a.user then
  job.line = next_order(pool, users_queue(class, a.tenant), flow_of_user(job), class, math.floor(SHARE * cost + 0.5))
else
  job.line = class * CLASS + arrival
end
redis.call('HSET', key,
  'v', a.v, 'id', a.job, 'tenant', a.tenant, 'model', a.model, 'pool', pool, 'state', 'pending', 'input', a.input,
  'fields', a.fields, 'created', now, 'priority', a.priority, 'attempt', 0, 'counted', 0,
  'max_attempts', a.max_attempts, 'run_timeout', a.run_timeout, 'message_head', a.message_head,
  'message_tail', a.message_tail, 'pushes', 0,
  'line', digits(job.line), 'images', used.images, 'reserved', used.gpu_ms)
if share ~= SHARE then redis.call('HSET', key, 'share', share) end
if a.user then redis.call('HSET', key, 'user', a.user) end
if a.key_id then redis.call('HSET', key, 'key_id', a.key_id) end
if a.traceparent then redis.call('HSET', key, 'traceparent', a.traceparent) end
if a.webhook then
  redis.call('HSET', key, 'webhook', a.webhook, 'webhook_events', a.webhook_events, 'webhook_target', a.webhook_target)
end
local deadline = tonumber(a.start_deadline or math.huge)
if a.start_within and now + a.start_within < deadline then
  deadline = now + a.start_within
  redis.call('HSET', key, 'start_within', a.start_within)
end
if deadline < math.huge then
  redis.call('HSET', key, 'start_deadline', string.format('%.0f', deadline))
  redis.call('ZADD', deadlines_key, string.format('%.0f', deadline), a.job)
end
-- The id begins with the time of the function that created it (RFC 9562, section 5.7).
local made = tonumber((string.gsub(string.sub(a.job, 1, 13), '-', '')), 16)
if made and math.abs(made - now) > CLOCK_SLACK_MS then
  redis.call('HSET', clock_key, 'function', string.format('%.0f %.0f', made - now, now))
end
if idem then redis.call('SET', idem, a.job .. ' ' .. a.fingerprint, 'PX', 24 * 3600 * 1000) end
redis.call('ZADD', tenant_key(a.tenant), 0, a.job)
if a.redrive_of then
  redis.call('HSET', job_key(a.redrive_of), 'redriven_as', a.job)
  remove_dead_letter(a.redrive_of, a.tenant)
end
count_bytes(pool, bytes)
charge('tenant', of_tenant, used)
if of_key then charge('key', of_key, used) end
if a.audit then append_to_audit(a.audit) end
log(a.job, 'accepted', 'pending', a.accepted, a.tenant)
-- Redis reserves 4 KB for the first entries of a stream, and nothing for those of a copy.
redis.call('COPY', log_key(a.job), log_draft_key, 'REPLACE')
redis.call('RENAME', log_draft_key, log_key(a.job))
local is_eligible = enqueue(job, scopes_of(job))
dispatch(pool)
if queued == 0 and is_eligible then redis.call('PUBLISH', wake_channel, 'backlog ' .. pool) end
return reply('accepted ' .. a.job .. ' ' .. now)
