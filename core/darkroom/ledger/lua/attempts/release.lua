-- running → pending, at the head of the queue, by the worker that holds the token or, for a worker that is gone, by a
-- caller that names the worker. `drain` and `worker_fault` do not count as an attempt, `worker_lost` does.
allow_at_maxmemory()
local rec = redis.call('HMGET', job_key(a.job), 'state', 'token', 'worker', 'pool', 'ended_token', 'ended_answer')
local held = rec[1] == 'running' and (a.token and rec[2] == a.token or not a.token and rec[3] == a.worker)
if not held then
  if a.token and rec[5] == a.token then return rec[6] end
  return 'lost'
end
local answer = release_job(a.job, rec[4], a.reason, a.reason == 'worker_lost', a.detail)
record_reply(a.job, rec[2], a.token and answer or 'lost')
return answer
