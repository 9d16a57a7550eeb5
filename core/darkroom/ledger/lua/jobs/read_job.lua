-- Reads a job at one moment: its record (names and values in turn) and its queue position, 1 being next, 0 none. The
-- position of a held job is the one that it would have if its limit admitted it now, behind the jobs that are held
-- before it.
local rec = redis.call('HGETALL', job_key(a.job))
if #rec == 0 then return {} end
local pool = redis.call('HGET', job_key(a.job), 'pool')
local place = redis.call('ZRANK', dispatched_key(pool), a.job)
if not place then
  local job = queued_job(a.job, pool)
  local ahead = redis.call('ZCARD', dispatched_key(pool))
  if redis.call('ZSCORE', held_key(pool), a.job) then
    local scope = redis.call('HGET', job_key(a.job), 'held') == 'key' and job.tenant .. '/' .. job.key or job.tenant
    local held_before = redis.call('ZRANK', excess_key(pool, scope), a.job) or 0
    local class = class_of(job.line)
    local order = job.order or next_order(pool, class, job.tenant, class, job.share * (held_before + 1))
    place = ahead + held_before + redis.call('ZCOUNT', waiting_key(pool), '-inf', '(' .. digits(order))
  else
    place = redis.call('ZRANK', waiting_key(pool), turn_of(job))
    if place then place = place + ahead end
  end
end
return {rec, place and place + 1 or 0}
