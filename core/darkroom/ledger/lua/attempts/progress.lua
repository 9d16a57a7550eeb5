-- running, with token: step `step` of `steps` is done. `publish` = 1 writes a log entry; the worker limits how often.
-- `op` numbers the calls of one attempt: a repeated one changes nothing. Returns the same as `renew`.
allow_at_maxmemory()
local key = job_key(a.job)
local rec = redis.call('HMGET', key, 'state', 'token', 'cancel', 'op')
if rec[1] ~= 'running' or rec[2] ~= a.token then return 'lost' end
if tonumber(a.op) > tonumber(rec[4] or 0) then
  local percent = math.floor(100 * tonumber(a.step) / tonumber(a.steps))
  redis.call('HSET', key, 'op', a.op, 'step', a.step, 'steps', a.steps, 'progress', percent)
  if a.publish == '1' and not rec[3] then
    log(a.job, 'progressed', 'running',
      '{"progress":' .. percent .. ',"step":' .. tonumber(a.step) .. ',"steps":' .. tonumber(a.steps) .. '}')
  end
end
return rec[3] and 'cancel' or 'ok'
