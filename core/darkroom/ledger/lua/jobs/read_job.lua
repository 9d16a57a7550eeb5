-- Reads a job at one moment: its record (names and values in turn) and its queue position, 1 being next, 0 none.
local rec = redis.call('HGETALL', job_key(a.job))
if #rec == 0 then return {} end
local pool = redis.call('HGET', job_key(a.job), 'pool')
local place = redis.call('ZRANK', dispatched_key(pool), a.job)
if not place then
  place = redis.call('ZRANK', waiting_key(pool), a.job)
  if place then place = place + redis.call('ZCARD', dispatched_key(pool)) end
end
return {rec, place and place + 1 or 0}
