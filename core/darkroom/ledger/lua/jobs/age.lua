-- pending → pending, by the courier: jobs that have waited in their priority class for longer than `bound_ms` move up
-- one class, where they follow their tenant's jobs by its share. A message that was sent stays where it is. Returns
-- their ids.
allow_at_maxmemory()
local until_ms = digits(now - tonumber(a.bound_ms))
local entries = redis.call('ZRANGEBYSCORE', ageing_key(a.pool), '-inf', until_ms, 'WITHSCORES', 'LIMIT', 0, a.limit)
local last = entries[#entries]
local aged, due = {}, {}
local function find(id)
  if not has_record(id, ageing_key(a.pool)) then return end
  if redis.call('ZSCORE', waiting_key(a.pool), id) or redis.call('ZSCORE', held_key(a.pool), id) then
    due[id] = queued_job(id, a.pool)
  else
    redis.call('ZADD', ageing_key(a.pool), 'XX', now, id)
  end
end
for i = 1, #entries, 2 do find(entries[i]) end
-- All that were accepted in the same millisecond move in one call, so that they keep the order of their arrival.
if last then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', ageing_key(a.pool), last, last)) do
    if not due[id] then find(id) end
  end
end
local jobs = {}
for _, job in pairs(due) do jobs[#jobs + 1] = job end
table.sort(jobs, function(x, y)
  if x.line ~= y.line then return x.line < y.line end
  return x.id < y.id
end)
for _, job in ipairs(jobs) do
  local scopes = scopes_of(job)
  local class = class_of(job.line) - 1
  remove_from_queue(job)
  leave_scopes(job, scopes)
  job.order = nil
  if job.user then
    job.line = next_order(job.pool, users_queue(class, job.tenant), flow_of_user(job), class, SHARE)
  else
    job.line = job.line - CLASS
  end
  redis.call('HDEL', job_key(job.id), 'order')
  redis.call('HSET', job_key(job.id), 'line', digits(job.line))
  enqueue(job, scopes)
  apply_limits(job, scopes)
  aged[#aged + 1] = job.id
end
dispatch(a.pool)
return aged
