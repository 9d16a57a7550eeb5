-- Records Redis' time once per tick, and how far the courier's clock (`clock`) is ahead of it. Where Redis' clock was
-- set back since the last tick, every time in the future is brought forward by the same amount, so that delays and
-- leases keep their length. A start deadline that the caller gave as an absolute time does not change. Returns by how
-- many milliseconds the clock was set back; 0 nearly always.
allow_at_maxmemory()
local last = tonumber(redis.call('HGET', clock_key, 'at') or now)
redis.call('HSET', clock_key, 'at', now, 'courier', string.format('%.0f %.0f', a.clock - now, now))
local back = last - now
if back < SET_BACK_MS then return 0 end
redis.call('HSET', clock_key, 'set_back', string.format('%.0f %.0f', back, now))

local function text(ms) return string.format('%.0f', ms) end
local function earlier(at) return text(math.max(now, tonumber(at) - back)) end
local function shift_field(key, field)
  local at = redis.call('HGET', key, field)
  if at and tonumber(at) > now then redis.call('HSET', key, field, earlier(at)) end
end
-- Shifts each member that is due in the future and, where `field` is given, the same time in the member's record.
local function shift(set, key_of, field)
  local pairs = redis.call('ZRANGEBYSCORE', set, '(' .. text(now), '+inf', 'WITHSCORES')
  for i = 1, #pairs, 2 do
    redis.call('ZADD', set, earlier(pairs[i + 1]), pairs[i])
    if field then shift_field(key_of(pairs[i]), field) end
  end
end

for _, pool in ipairs(redis.call('SMEMBERS', pools_key)) do
  shift(due_key(pool), job_key, 'not_before')
  shift(ageing_key(pool))
  shift(running_key(pool), job_key, 'lease')
  shift(slots_key(pool))
  shift(workers_of_key(pool), worker_key, 'draining_until')
  for _, id in ipairs(redis.call('ZRANGE', dispatched_key(pool), 0, -1)) do shift_field(job_key(id), 'pushed') end
  for _, field in ipairs({'quiet_until', 'reaped', 'last_end'}) do shift_field(pool_key(pool), field) end
end
shift(workers_key)
for _, set in ipairs({outbox_key, history_key, notices_key}) do shift(set) end
for _, id in ipairs(redis.call('ZRANGE', deadlines_key, 0, -1)) do
  if redis.call('HEXISTS', job_key(id), 'start_within') == 1 then
    shift_field(job_key(id), 'start_deadline')
    redis.call('ZADD', deadlines_key, redis.call('HGET', job_key(id), 'start_deadline'), id)
  end
end
for _, target in ipairs(redis.call('ZRANGE', targets_key, 0, -1)) do
  shift(deliveries_key(target))
  shift(leased_key(target))
  for _, field in ipairs({'paused_until', 'next_at', 'served'}) do shift_field(target_key(target), field) end
  schedule_target(target)
end
return back
