-- drain: of a pool's workers that run nothing, `count` in all are marked to take no job, atomically with `claim`, which puts
-- back what a marked one took. The mark lasts `ttl_ms`; asked again, it is renewed, and what is marked above the count is
-- not any more (`count` 0 undoes it all). Marked ones come first, then faulty, starting and idle ones. `pods`: only those on
-- these pods are looked at, blanks between them. Answers the marked workers with their pods, by name.
may_always_run()
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
