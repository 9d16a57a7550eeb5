-- Marks `count` workers of a pool that run nothing, in all, so that they accept no job, atomically with `claim`, which
-- requeues what a marked worker received. The mark lasts `ttl_ms`; a repeated call renews it and removes marks above
-- the count (`count` 0 removes all). Marked workers come first, then faulty, starting and idle ones. `pods`: only
-- workers on these pods are considered, with blanks between. Returns the marked workers with their pods, by name.
allow_at_maxmemory()
local pods
if a.pods then
  pods = {}
  for pod in string.gmatch(a.pods, '%S+') do pods[pod] = true end
end
local candidates = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', workers_of_key(a.pool), now, '+inf')) do
  local rec = redis.call('HMGET', worker_key(name), 'pod', 'state', 'draining_until')
  if rec[1] and rec[2] ~= 'draining' and (not pods or pods[rec[1]]) and redis.call('HEXISTS', busy_key, name) == 0 then
    local is_marked = rec[3] and now < tonumber(rec[3])
    local rank = is_marked and 0 or rec[2] == 'faulty' and 1 or rec[2] == 'starting' and 2 or 3
    candidates[#candidates + 1] = {name = name, pod = rec[1], state = rec[2], marked = is_marked, rank = rank}
  end
end
table.sort(candidates, function(x, y)
  if x.rank ~= y.rank then return x.rank < y.rank end
  return x.name < y.name
end)
local answer = {}
for i, worker in ipairs(candidates) do
  if i <= tonumber(a.count) then
    redis.call('HSET', worker_key(worker.name), 'draining_until', now + tonumber(a.ttl_ms))
    redis.call('ZREM', slots_key(a.pool), worker.name)
    answer[#answer + 1] = {worker.name, worker.pod}
  elseif worker.marked then
    redis.call('HDEL', worker_key(worker.name), 'draining_until')
    if worker.state == 'ready' or worker.state == 'busy' then
      redis.call('ZADD', slots_key(a.pool), redis.call('ZSCORE', workers_of_key(a.pool), worker.name), worker.name)
    end
  end
end
table.sort(answer, function(x, y) return x[1] < y[1] end)
dispatch(a.pool)
return answer
