-- Reads the jobs and the workers of a pool at one moment, for the operator. `soon_ms`: a retry that is due within this
-- counts as demand; a held job does not. The ledger decides whether a worker is busy, not the worker's own state.
local pool = a.pool
local workers = {starting = 0, idle = 0, busy = 0, marked = 0, draining = 0, faulty = 0}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', workers_of_key(pool), now, '+inf')) do
  local state, draining_until = unpack(redis.call('HMGET', worker_key(name), 'state', 'draining_until'))
  if redis.call('HEXISTS', busy_key, name) == 1 then
    state = 'busy'
  elseif state ~= 'draining' and draining_until and now < tonumber(draining_until) then
    state = 'marked'
  elseif state == 'ready' or state == 'busy' then
    state = 'idle'
  end
  if workers[state] then workers[state] = workers[state] + 1 end
end

local waiting, dispatched = redis.call('ZCARD', waiting_key(pool)), redis.call('ZCARD', dispatched_key(pool))
local first = redis.call('ZRANGE', dispatched_key(pool), 0, 0)
if waiting > 0 then
  for class = 0, 9 do -- within a class each tenant's own order is that of arrival
    local from, below = bounds_of(class)
    first[#first + 1] = redis.call('ZRANGEBYSCORE', waiting_key(pool), from, below, 'LIMIT', 0, 1)[1]
  end
  for _, id in ipairs(redis.call('ZRANGE', ageing_key(pool), 0, 9)) do
    if redis.call('ZSCORE', waiting_key(pool), id) then first[#first + 1] = id end
  end
end
local oldest
for _, id in ipairs(first) do
  local created = tonumber(redis.call('HGET', job_key(id), 'created') or now)
  if not oldest or created < oldest then oldest = created end
end

local arrivals, service = unpack(redis.call('HMGET', pool_key(pool), 'arrivals', 'service_ms'))
return {
  waiting, dispatched, redis.call('ZCARD', running_key(pool)),
  redis.call('ZCOUNT', due_key(pool), '-inf', now + tonumber(a.soon_ms)),
  oldest and math.max(0, now - oldest) or false, tonumber(arrivals or 0),
  workers.starting, workers.idle, workers.busy, workers.marked, workers.draining, workers.faulty,
  service,
}
